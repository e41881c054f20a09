"""The objects that caption hallucination looks for, and the words that name them.

A vocabulary maps an object to its other names; singular is enough, plurals are understood. Two are
built in: `scenes` for generated scenes, and `coco` with the 80 objects of the COCO detection set
under names of our own choosing, so rates with it are comparable with each other and not with
published CHAIR numbers, which used another word list. A JSON file can bring any other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from saccade.config.errors import InputError

Vocabulary = Mapping[str, tuple[str, ...]]
"""Other names of each object."""

SCENES: Vocabulary = {
    "circle": ("disc", "disk", "dot"), "square": (), "triangle": (), "star": (), "heart": (),
    "cross": ("plus", "plus sign"), "diamond": ("rhombus",), "moon": ("crescent",), "sign": (),
}  # fmt: skip

_COCO = """
person: man, woman, boy, girl, child, kid, baby, guy, lady, people, men, women, children, player
bicycle: bike | car: automobile, taxi, sedan, suv | motorcycle: motorbike, moped, scooter
airplane: plane, aeroplane, jet, aircraft | bus: minibus | train: locomotive, tram
truck: lorry, pickup | boat: ship, sailboat, canoe, ferry | traffic light: traffic signal, stoplight
fire hydrant: hydrant | stop sign | parking meter | bench | bird: duck, pigeon, seagull, goose
cat: kitten, kitty | dog: puppy | horse: pony, foal | sheep: lamb | cow: cattle, calf, bull
elephant | bear: polar bear | zebra | giraffe | backpack: rucksack | umbrella: parasol
handbag: purse | tie: necktie, bow tie | suitcase: luggage | frisbee | skis: ski | snowboard
sports ball: ball, football, baseball, basketball, tennis ball | kite | baseball bat
baseball glove: mitt | skateboard | surfboard | tennis racket: racket, racquet, tennis racquet
bottle | wine glass | cup: mug | fork | knife | spoon | bowl | banana | apple
sandwich: hamburger, burger | orange | broccoli | carrot | hot dog: hotdog | pizza
donut: doughnut | cake: cupcake | chair: stool, armchair | couch: sofa
potted plant: houseplant, pot plant | bed | dining table: table, desk | toilet
tv: television, monitor | laptop: laptop computer | mouse: computer mouse
remote: remote control | keyboard | cell phone: phone, mobile phone, smartphone
microwave: microwave oven | oven: stove | toaster | sink: washbasin | refrigerator: fridge
book | clock | vase | scissors | teddy bear: stuffed bear | hair drier: hair dryer, hairdryer
toothbrush
"""


def _read_coco() -> Vocabulary:
    entries = (entry.partition(":") for entry in _COCO.replace("\n", "|").split("|"))
    return {
        name.strip(): tuple(other.strip() for other in others.split(",") if other.strip())
        for name, _, others in entries
        if name.strip()
    }


VOCABULARIES: dict[str, Vocabulary] = {"scenes": SCENES, "coco": _read_coco()}


def read_vocabulary(name: str) -> Vocabulary:
    """A built-in vocabulary by name, or a JSON file {object: [other names]}.

    Raises InputError for a file that is missing or holds something else.
    """
    if name in VOCABULARIES:
        return VOCABULARIES[name]
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(
            f"eval.vocabulary: {name}: {reason}\n  fix: use one of {', '.join(VOCABULARIES)}, or a"
            ' JSON file such as {"dog": ["puppy"], "cat": []}'
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(others, list) and all(isinstance(one, str) for one in others)
        for others in content.values()
    ):
        raise InputError(
            f'{name}: not a vocabulary\n  fix: one object of lists, {{"dog": ["puppy"], "cat": []}}'
        )
    return {object_: tuple(others) for object_, others in content.items()}
