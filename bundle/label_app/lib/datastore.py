"""The folder of slides and labels, kept from writing outside of itself."""

from __future__ import annotations

import os
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore

from .labels import check_tag
from .reasons import BAD_REQUEST, RequestError, show

__all__ = ["SlideDatastore"]


class SlideDatastore(LocalDatastore):
    """MONAI Label's folder, for which an id and a tag are plain names: it makes paths of them as they come.

    Its endpoints call these methods directly, so that the reasons are exceptions that reach a client.
    """

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Add a slide.

        Raises:
            HTTPException: if its id leads out of the folder.
        """
        if image_id and (image_id.startswith(".") or os.path.basename(image_id) != image_id):
            remedy = "Give a name without folders."
            error = RequestError(BAD_REQUEST, "image", f"got {show(image_id)}", remedy)
            raise HTTPException(error.status, str(error))
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Save a label.

        Raises:
            HTTPException: if the tag is no plain name.
        """
        try:
            check_tag(label_tag, "tag")
        except RequestError as error:
            raise HTTPException(error.status, str(error)) from error
        return str(super().save_label(image_id, label_filename, label_tag, label_info))
