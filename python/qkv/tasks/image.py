"""image-classification: the labels of a model for images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..batching import check_integer
from ..images import load_image
from .base import Pipeline
from .texts import applied, check_function, labels


@dataclass(frozen=True)
class ImageOptions:
    """top_k: how many labels, the best first. function_to_apply: on logits, one of FUNCTIONS."""

    top_k: int = 5
    function_to_apply: str = "default"

    def __post_init__(self) -> None:
        check_integer("image-classification", "top_k", self.top_k, 0)
        check_function("image-classification", self.function_to_apply)


class ImageClassificationPipeline(Pipeline):
    """An image, as a path, the bytes of a file, an image of Pillow or an array, to its labels: a list of dictionaries,
    and a list of such lists for a list of images."""

    Options: ClassVar[type[Any]] = ImageOptions
    window: ClassVar[int] = 64  # images are large

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.processor = self.model.image_processor
        self.labels = labels(self.model.config)

    def prepare(self, inputs: list[Any], o: ImageOptions) -> list[list[Any]]:
        rows = []
        for image in inputs:
            prepared = self.processor(image if hasattr(image, "ndim") else load_image(image))
            (count,) = {len(values) for values in prepared.values()}
            if count != 1:
                raise ValueError(f"{self.task}: an array of {count} images is no image; pass a list of them")
            rows.append([prepared])
        return rows

    def length(self, row: Any) -> int:
        ids = row.get("input_ids")
        model: Any = self.model
        return int(model.patches.tokens if ids is None else ids.shape[1])

    def forward(self, rows: list[Any], o: ImageOptions) -> Sequence[Any]:
        model: Any = self.model
        batch = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return list(model(**batch).logits)

    def finish(self, given: Any, rows: list[Any], outputs: list[Any], o: ImageOptions) -> list[dict[str, Any]]:
        scores = applied(o.function_to_apply, outputs[0], self.model.config)
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: o.top_k]
        return [{"label": self.labels[i], "score": float(scores[i])} for i in best]
