"""hs2p finds tissue and lays the grid, slide2vec encodes, with a ResNet34 that is registered as an encoder."""

from __future__ import annotations

from dataclasses import replace

import torch
from runner import MEAN, STD, parse_options, report, resnet34

NAME = "resnet34-of-a-file"


def main() -> None:
    """Run slide2vec's pipeline for each magnification."""
    args = parse_options()
    # Not at the top, which its processes that read tiles run again.
    from hs2p import DEFAULT_MASK_SAMPLING, PreviewConfig, TilingConfig
    from slide2vec import ExecutionOptions, Model, Pipeline, PreprocessingConfig, TorchTileEncoder, register_encoder

    @register_encoder(
        NAME,
        encode_dim=512,
        input_size=args.patch_size,
        supports_variable_input_size=False,
        supported_spacing_um=None,
        default_spacing_um=10 / args.magnifications[0],
        precision="fp32",
    )
    class ResNet34(TorchTileEncoder):
        def __init__(self, *, output_variant: str | None = None) -> None:
            network = resnet34(args.weights)
            super().__init__(
                network, encode_dim=512, input_size=args.patch_size, mean=MEAN, std=STD, output_variant=output_variant
            )

    model = Model.from_preset(NAME, device="cpu")
    shapes = []
    for magnification in args.magnifications:
        preprocessing = PreprocessingConfig(
            tiling=TilingConfig(
                requested_spacing_um=10 / magnification,
                requested_tile_size_px=args.patch_size,
                tolerance=0.05,
                overlap=0.0,
            ),
            masks=replace(DEFAULT_MASK_SAMPLING, min_coverage={"tissue": args.min_tissue}),
            # The other tools draw no previews.
            preview=PreviewConfig(save_mask_preview=False, save_tiling_preview=False),
            num_cucim_workers=args.threads,
        )
        execution = ExecutionOptions(
            output_dir=args.output / f"{magnification:g}x",
            batch_size=args.batch_size,
            num_workers_per_gpu=args.threads,
            num_preprocessing_workers=args.threads,
            num_gpus=1,
            precision="fp32",
        )
        result = Pipeline(model, preprocessing, execution=execution).run(slides=sorted(args.slides.iterdir()))
        shapes += [torch.load(artifact.path, weights_only=True).shape for artifact in result.tile_artifacts]
    report(args.report, shapes)


if __name__ == "__main__":
    main()
