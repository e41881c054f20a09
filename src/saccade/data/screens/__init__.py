"""Screens: pages to click on, generated or read from files, as sources of samples."""
