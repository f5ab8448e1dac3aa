"""From patches to feature files: backbones, runtimes, augmentation, extraction, the feature bank."""
