"""Inception's weights and features, as ADM's evaluation takes them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.hub import load_state_dict_from_url
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from dkdm_lab.data.images import content_hash
from dkdm_lab.system.paths import cache_dir

INCEPTION_WEIGHTS = Path(URL_INCEPTION_V3).name  # weights-inception-2015-12-05-6726825d.pth


# -- Inception ----------------------------------------------------------------------------------------


class InceptionSpatial(FeatureExtractorInceptionV3):
    """FID's Inception that also gives sFID's features: ``spatial``, ``[B, 2023]``.

    They are the first 7 channels of the 17x17 maps that the 1x1 branch of ``mixed_6`` gives, flattened
    height, width, channel, as in ADM's evaluation. Registered with torch-fidelity as
    ``inception-v3-spatial``; one forward pass serves every layer asked for.
    """

    def __init__(self, name, features_list, **options):
        super().__init__(name, features_list, **options)
        self._maps: Tensor | None = None
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def _keep(self, module, inputs, output):
        self._maps = output

    @staticmethod
    def get_provided_features_list():
        return *FeatureExtractorInceptionV3.get_provided_features_list(), "spatial"

    @staticmethod
    def can_be_compiled():
        return False

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        wanted = self.features_list
        # The parent stops at the last layer it is asked for, and must get past mixed_6.
        self.features_list = [layer for layer in wanted if layer != "spatial"] or ["2048"]
        try:
            found = dict(zip(self.features_list, super().forward(images), strict=True))
        finally:
            self.features_list = wanted
        if "spatial" in wanted:
            found["spatial"] = self._maps[:, :7].permute(0, 2, 3, 1).flatten(1).to(torch.float32)
        return tuple(found[layer] for layer in wanted)


register_feature_extractor("inception-v3-spatial", InceptionSpatial)


def inception_weights() -> Path:
    """The file of Inception's weights in data_cache, downloaded there if it is missing."""
    file = cache_dir() / INCEPTION_WEIGHTS
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            load_state_dict_from_url(URL_INCEPTION_V3, model_dir=str(file.parent), progress=False)
        except OSError as error:  # what urllib raises is one
            raise FileNotFoundError(
                f"{file}: found no Inception weights, and could not download them ({error}); "
                f"fetch {URL_INCEPTION_V3} elsewhere and put it there"
            ) from error
    return file


def _inception_has_head() -> bool:
    return bool(_inception_state()["fc.weight"].any())


def _inception_hash() -> str:
    """Which Inception a score was measured with; its classifier head makes no difference to features."""
    state = _inception_state()
    body = [state[key].float().flatten() for key in sorted(state) if not key.startswith("fc.")]
    return content_hash(torch.cat(body))


def _inception_state() -> dict:
    file = inception_weights()
    return _read_inception(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_inception(file: Path, _changed: int) -> dict:
    # Always before torch-fidelity reads the file, which would run what a pickle says.
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        state["fc.weight"], state["Mixed_6d.branch1x1.conv.weight"]
    except Exception as error:  # a torn download, another file
        raise ValueError(f"{file}: these are not Inception's weights ({error}); delete it") from error
    return state
