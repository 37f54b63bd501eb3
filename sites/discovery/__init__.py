"""Finding a hospital's scans on disk and describing them in a manifest.

Two layouts are understood, ``folders`` and ``bids``. Each gives ``ScanRecord``s and findings; one
writer makes the manifest. Only names, headers and the small text files beside the images are
read: whether an image can be used is for ``iedn-client check``. Nothing here leaves the site.
"""
