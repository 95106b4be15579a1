"""A system of your own in one file: one model call describes a thing, another says what sort of thing it is.

python launch/run.py --config=configs/own_system.py
"""

from ml_collections import config_dict

from optimas_jax.benchmarks.data import Dataset, deal
from optimas_jax.benchmarks.metrics import exact_match
from optimas_jax.core.system import System
from optimas_jax.core.types import Example
from optimas_jax.llm.component import llm_component
from optimas_jax.presets import command_line, own_system

METRIC = "exact match"
THINGS = {
    "fruit": "apple pear plum cherry banana lemon grape peach mango fig melon kiwi lime orange",
    "animal": "dog horse cow sheep lion tiger mouse goat wolf bear fox eagle shark frog",
    "tool": "hammer saw drill wrench pliers chisel screwdriver axe shovel rake file spade crowbar clamp",
}


def load(config):
    examples = [Example(w, {"thing": w}, {"sort": s}, "") for s, words in THINGS.items() for w in words.split()]
    return Dataset(deal(examples, config), chance={METRIC: 1 / len(THINGS)}, origin="42 words")


def build(dataset, settings):
    call = {"language_model": settings.language_model, "max_tokens": 16, "stop": ("\n",)}
    describe, say = "Say what the thing is used for or does.", f"Say what sort of thing it is: {', '.join(THINGS)}."
    describer = llm_component(
        name="describer", description=describe, inputs=("thing",), output="use", instruction=describe, **call
    )
    sorter = llm_component(
        name="sorter", description=say, inputs=("thing", "use"), output="sort", instruction=say, **call
    )
    return System(
        (describer, sorter), ("thing",), ("sort",), lambda outputs, gold: exact_match(outputs["sort"], gold["sort"])
    )


def get_config(variant=""):
    return config_dict.ConfigDict(
        command_line(own_system(__file__, train=12, val=8, confirm=8, test=14), config_dict.placeholder)
    )
