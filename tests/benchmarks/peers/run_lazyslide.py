"""LazySlide: its default search for tissue, and a ResNet34 as callable."""

from __future__ import annotations

import lazyslide
from runner import parse_options, report, resnet34, to_input
from wsidata import open_wsi


def main() -> None:
    """Encode slide after slide, each into a store of its own."""
    args = parse_options()
    network, transform = resnet34(args.weights), to_input()
    shapes = []
    for path in sorted(args.slides.iterdir()):
        slide = open_wsi(path, store=str(args.output / f"{path.stem}.zarr"))
        lazyslide.pp.find_tissues(slide)
        for magnification in args.magnifications:
            tiles, features = f"tiles_{magnification:g}x", f"features_{magnification:g}x"
            lazyslide.pp.tile_tissues(
                slide,
                args.patch_size,
                mpp=10 / magnification,
                background_fraction=1 - args.min_tissue,
                key_added=tiles,
            )
            # A slide without tiles stops it.
            if len(slide.shapes[tiles]):
                lazyslide.tl.feature_extraction(
                    slide,
                    network,
                    transform=transform,
                    device="cpu",
                    batch_size=args.batch_size,
                    num_workers=args.threads,
                    tile_key=tiles,
                    key_added=features,
                    pbar=False,
                )
                shapes.append(slide.tables[features].shape)
        slide.write()
    report(args.report, shapes)


if __name__ == "__main__":
    main()
