"""ImageGPT (Chen et al. 2020): GPT-2 with RMS norms, on the colours of an image's pixels.

A pixel's id is that of the nearest of the image processor's colours; the last id of the vocabulary starts an image.
"""

from __future__ import annotations

from ..config import Config
from ..layers import RMSNorm
from ..weights import Weights
from .gpt import NO_LM, PREFIXES, SCORE, Sizes, rules_of
from .gpt2 import BODY, build
from .heads import LMHead, MeanHead
from .tokens import Task, TokenClass

SIZES = Sizes(513, 1024, 512, 24, 8)


def _lm(w: Weights, config: Config) -> LMHead:
    """Colours only: an image starts once."""
    config.only("tie_word_embeddings", False)
    sizes = SIZES.read(config)
    return LMHead(w, sizes.width, sizes.vocabulary - 1)


def _mean(w: Weights, config: Config) -> MeanHead:
    return MeanHead(w.at("score"), SIZES.read(config).width, config.num_labels())


def _class(task: Task) -> TokenClass:
    return TokenClass(
        PREFIXES,
        rules_of(BODY, tied=False),
        lambda config, w, task: build(config, w, task, SIZES.read(config), RMSNorm, "quick_gelu"),
        task,
    )


ARCHITECTURES = {
    "ImageGPTModel": _class(Task(names=NO_LM)),
    "ImageGPTForCausalImageModeling": _class(Task(_lm)),
    "ImageGPTForImageClassification": _class(Task(_mean, [*NO_LM, *SCORE])),
}
MODEL_TYPES = {"imagegpt": "ImageGPTModel"}
