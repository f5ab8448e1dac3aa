"""The report of a run: one HTML page that opens without a network, and a folder of pictures beside it.

Other rooms use ``writer.ReportWriter`` (the handler of `inferring` and `evaluating`) and ``page.write_page``.
"""
