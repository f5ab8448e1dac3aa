"""Opens any slide, and reads a region of it at any magnification.

Other rooms use ``slide.Slide``, ``frames`` (positions that leave, images that come in), ``checksums`` (is it the file
that is meant), ``dicom_series`` (which files are one slide) and ``monai_reader.MagnificationReader``. A slide is opened
by ``slide``, which asks ``isolation``, which asks ``reader_process``, once: that looks at the file (``first_look``) and
tries the native ``backends``; the answer (``opened``) becomes levels, a ``resolution`` and bounds.

The process that reads slides imports this package: nothing is imported here.
"""
