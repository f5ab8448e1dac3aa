"""TRIDENT: Otsu's segmentation, and a ResNet34 as custom encoder."""

from __future__ import annotations

import sys
import warnings

import h5py
import torch
from runner import parse_options, report, resnet34, to_input


def main() -> None:
    """Run TRIDENT's three jobs, one after the other."""
    args = parse_options()
    warnings.filterwarnings("ignore")
    sys.path.insert(0, str(args.checkout))
    from trident import Processor
    from trident.patch_encoder_models.load import CustomInferenceEncoder
    from trident.segmentation_models.load import segmentation_model_factory

    # bfloat16 does not run on a CPU: TRIDENT makes NumPy arrays of its features, and NumPy has no such type.
    encoder = CustomInferenceEncoder("resnet34", resnet34(args.weights), to_input(), torch.float32)
    processor = Processor(job_dir=str(args.output), wsi_source=str(args.slides), max_workers=args.threads)
    otsu = segmentation_model_factory("otsu", confidence_thresh=0.5)
    processor.run_segmentation_job(otsu, seg_mag=otsu.target_mag, holes_are_tissue=True, device="cpu")
    for magnification in args.magnifications:
        folder = f"{magnification:g}x"
        # Its picture of the patches is switched off: the other tools draw none.
        processor.run_patching_job(
            target_magnification=magnification,
            patch_size=args.patch_size,
            saveto=folder,
            visualize=False,
            min_tissue_proportion=args.min_tissue,
        )
        with torch.inference_mode():
            processor.run_patch_feature_extraction_job(
                coords_dir=folder, patch_encoder=encoder, device="cpu", saveas="h5", batch_limit=args.batch_size
            )
    shapes = []
    for path in args.output.glob("*x/features_*/*.h5"):
        with h5py.File(path) as file:
            shapes.append(file["features"].shape)
    report(args.report, shapes)


if __name__ == "__main__":
    main()
