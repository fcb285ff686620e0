"""Mixtures of experts on images. Names load on first use, so importing this costs nothing."""

from moeapps.lazy import lazy_names

_NAMES: dict[str, str] = {
    "ImageSet": "moeapps.vision.datasets.images",
    "Splits": "moeapps.vision.datasets.images",
    "long_tail": "moeapps.vision.datasets.imbalance",
    "TwoView": "moeapps.vision.transforms",
    "ImageViews": "moeapps.vision.views",
    "Branches": "moeapps.vision.backbones.branches",
    "CosineClassifier": "moeapps.vision.backbones.cosine",
    "ExpertBranches": "moeapps.vision.backbones.timm_branches",
    "LongTailModel": "moeapps.vision.longtail.base",
    "CrossEntropy": "moeapps.vision.longtail.cross_entropy",
    "LogitAdjustment": "moeapps.vision.longtail.logit_adjustment",
    "BalancedSoftmax": "moeapps.vision.longtail.logit_adjustment",
    "LDAM": "moeapps.vision.longtail.ldam",
    "RIDE": "moeapps.vision.longtail.ride",
    "SADE": "moeapps.vision.longtail.sade",
    "test_time_weights": "moeapps.vision.longtail.sade",
    "BalPoE": "moeapps.vision.longtail.balpoe",
    "mixup": "moeapps.vision.longtail.balpoe",
    "MDCS": "moeapps.vision.longtail.mdcs",
    "TLC": "moeapps.vision.longtail.tlc",
    "BackdoorAdjustment": "moeapps.vision.longtail.backdoor",
    "log_uncertainty": "moeapps.vision.longtail.evidence",
    "MeanLogits": "moeapps.vision.longtail.aggregate",
    "MeanProb": "moeapps.vision.longtail.aggregate",
    "WeightedLogits": "moeapps.vision.longtail.aggregate",
    "PriorCorrected": "moeapps.vision.longtail.aggregate",
    "Dempster": "moeapps.vision.longtail.aggregate",
    "TLCSoft": "moeapps.vision.longtail.aggregate",
    "Sequential": "moeapps.vision.longtail.early_exit",
    "MaxProb": "moeapps.vision.longtail.early_exit",
    "Doubt": "moeapps.vision.longtail.early_exit",
    "ExpertAssignment": "moeapps.vision.longtail.expert_assignment",
    "fit_expert_assignment": "moeapps.vision.longtail.expert_assignment",
}

__all__ = [*_NAMES]

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
