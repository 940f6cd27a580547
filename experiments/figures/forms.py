"""The files in which a figure is saved; without matplotlib, which is slow to import."""

# What a library would write into them, and None: neither dates nor versions, which differ between two drawings.
METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
