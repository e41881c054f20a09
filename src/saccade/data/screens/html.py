"""Write a tree of nodes as one HTML element.

In goes a `Node`, out comes HTML whose flexible boxes the browser lays out; icons are inline SVG.
Everything comes with the page: no script, no address. Left out: the browser (`chromium.py`).
"""

from __future__ import annotations

from html import escape

from saccade.data.screens import icons
from saccade.data.screens.nodes import Node

SHEET = """
*{box-sizing:border-box;margin:0;padding:0;border:0;font:inherit;background:none;
  text-decoration:none;list-style:none;animation:none!important;transition:none!important;
  outline:none;appearance:none;caret-color:transparent}
html,body{width:100%;height:100%;overflow:hidden}
.n{display:flex;flex-shrink:0;min-width:0;min-height:0;overflow:hidden;line-height:1.3}
.t{white-space:nowrap;text-overflow:ellipsis;display:block}
.w{white-space:normal}
.s{display:grid}
.s>*{grid-area:1/1}
.i{display:block;overflow:visible;line-height:0}
.c{display:flex;justify-content:center;align-items:center;white-space:nowrap}
.spin{position:fixed;left:50%;top:50%;width:48px;height:48px;margin:-24px;border-radius:50%;
  border:6px solid #9aa0a6;border-top-color:transparent}
"""
JUSTIFY = {"start": "flex-start", "center": "center", "end": "flex-end", "between": "space-between"}
ALIGN = {"start": "flex-start", "center": "center", "end": "flex-end", "stretch": "stretch"}
TAGS = {"check": "input", "dialog": "div", "spinner": "div"}


def page_html(root: Node, *, font: str, loading: bool = False) -> str:
    """The body of a page; `loading` adds what turns while it is waited for."""
    spinner = '<div class="spin" role="progressbar" aria-label="loading"></div>' if loading else ""
    family = escape(font, quote=True)
    return (
        f'<div style="font-family:{family};width:100%;height:100%">{_element(root)}{spinner}</div>'
    )


def _element(node: Node) -> str:
    tag = TAGS.get(node.tag, node.tag)
    content = "".join(_element(child) for child in node.children)
    if node.icon is not None and not node.ghost:
        content = icons.svg(*node.icon)
    elif tag != "input":
        content += escape(node.text)
    attributes = f' class="{_classes(node)}" style="{escape(_style(node), quote=True)}"'
    attributes += _accessible(node)
    if node.target is not None:
        attributes += f' data-target="{node.target}"'
    if tag == "input":
        return f"<input{attributes}>"
    return f"<{tag}{attributes}>{content}</{tag}>"


def _classes(node: Node) -> str:
    if node.icon is not None:
        return "n i"
    if node.centered:
        return "n c"
    if node.text:
        return "n t w" if node.wrap else "n t"
    return "n s" if node.flow == "stack" else "n"


def _accessible(node: Node) -> str:
    """Attributes that say what the element is; those of content that has not come hide it."""
    if node.ghost:
        return ' aria-hidden="true"'
    said = ""
    if node.name:
        said += f' aria-label="{escape(node.name, quote=True)}"'
    if node.tag == "a":
        said += ' href="#"'
    if node.tag == "input":
        said += f' value="{escape(node.text, quote=True)}" readonly'
    if node.tag == "check":
        said += ' type="checkbox" aria-label="choose"'
    if node.tag == "dialog":
        said += ' role="dialog"'
    return said


def _style(node: Node) -> str:
    parts = [f"font-size:{node.size}px", f"color:{'transparent' if node.ghost else node.ink}"]
    if node.children or not node.text:
        if node.flow != "stack":
            parts.append(f"flex-direction:{node.flow};gap:{node.gap}px")
        parts.append(f"justify-content:{JUSTIFY[node.justify]};align-items:{ALIGN[node.align]}")
    if any(node.pad):
        parts.append(f"padding:{node.pad[0]}px {node.pad[1]}px")
    if node.grow or node.basis is not None:
        parts.append(f"flex:{node.grow:.3f} 0 {node.basis or 0}px")
    for side, length in (("width", node.width), ("height", node.height)):
        if length is not None:
            parts.append(f"{side}:{length}px")
    fill = node.ghost or node.fill
    if fill:
        parts.append(f"background:{fill}")
    shadows = [f"inset 0 0 0 1px {node.line}"] if node.line and not node.ghost else []
    shadows += ["0 2px 6px rgba(0,0,0,.28)"] if node.shadow else []
    if shadows:
        parts.append(f"box-shadow:{','.join(shadows)}")
    if node.radius:
        parts.append(f"border-radius:{node.radius}px")
    if node.bold:
        parts.append("font-weight:bold")
    return ";".join(parts)
