"""Every code that a finding about a cohort can carry: how grave, what it means, what to do.

Codes are stable: scripts and letters between hospitals may lean on them. A code that is no
longer used is not given a new meaning. The page ``docs/reference/codes.md`` is made from this
table.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Code:
    """What a code stands for.

    Attributes:
        meaning: what was found, in one line.
        action: what the owner of the scans can do.
    """

    meaning: str
    action: str


_EXPORT = "Export the series again from the archive."

CODES: dict[str, Code] = {
    "E100": Code("A file does not exist or cannot be opened.", "Correct the path or its rights."),
    "E101": Code("The file is truncated or damaged.", _EXPORT),
    "E102": Code("The file is not NIfTI, or empty.", "Convert the series to NIfTI."),
    "W103": Code(
        "A.nii lies beside A.nii.gz; the file named in the manifest is used.",
        "Remove the one that is not meant: other software may read the wrong one.",
    ),
    "E104": Code("The image axes are sheared too much.", "Export without tilt correction."),
    "W104": Code("The image axes are slightly sheared; made perpendicular.", "Nothing."),
    "E105": Code(
        "The header does not say where the image lies, or something impossible.",
        "Convert from DICOM again with a converter that writes the geometry.",
    ),
    "W106": Code(
        "The header gives two positions (sform, qform) that differ; the sform is used.",
        "Look at the overlay; convert again if the image lies wrong.",
    ),
    "I107": Code(
        "The image is stored in another orientation than RAS, or oblique.",
        "Nothing: it is resampled in physical space.",
    ),
    "I108": Code("An aligned copy of an image is used.", "Nothing."),
    "W109": Code(
        "Several files fit one column of the manifest; one is used.", "Rename those that are wrong."
    ),
    "W110": Code(
        "Files that are not used; each name is listed once.",
        "Nothing, or give them a known name.",
    ),
    "E111": Code(
        "Preparing the scan ended its process.",
        "Look at the sizes of its files; lower workers in site.toml if memory is short.",
    ),
    "E201": Code(
        "The file holds several volumes, or not three dimensions.",
        "Export one map, or name the volume in the column asl_volume.",
    ),
    "E202": Code("Colour or complex voxels.", "Export the quantitative series."),
    "E203": Code("NaN or infinite voxels in more than 0.1 % of the brain mask.", _EXPORT),
    "W203": Code("A few NaN or infinite voxels; set to 0.", "Nothing."),
    "W204": Code("Negative voxels in the brain mask; set to 0.", "Nothing."),
    "E204": Code(
        "Negative voxels in more than 5 % of the brain mask of an ADC, ASL or CBV map.",
        "Check which series it is: a map of this kind is not negative.",
    ),
    "E205": Code("All voxels are equal, or nothing is in the mask.", _EXPORT),
    "W206": Code(
        "The brain mask holds less than 800 or more than 2200 ml.",
        "Look at the overlay; draw the mask again if it is wrong.",
    ),
    "W207": Code(
        "The map's brain median fits no known unit; used as a relative map.",
        "Check which series it is. Scaling by the brain mean makes the unit itself harmless.",
    ),
    "W208": Code(
        "Part of the brain lies outside the grid and is cut off.",
        "Look at the overlay; check the mask.",
    ),
    "E210": Code("There is no T1WI, which defines the grid.", "Add the T1, or exclude the scan."),
    "E211": Code(
        "There is no brain mask, and none could be made.",
        "Make one and name it in the column brain_mask, or install the extra mask (deepbet).",
    ),
    "W211": Code(
        "There is no brain mask beside the images.",
        "Add one, named in brain_mask, or install the extra mask (deepbet).",
    ),
    "W212": Code(
        "The brain mask was made from the T1 by a network that knows healthy adults.",
        "Look at the overlay; draw the mask if it is wrong.",
    ),
    "E212": Code(
        "A BIDS file lies in the folder of another patient or session; not used.",
        "Move or rename it.",
    ),
    "W221": Code(
        "The image was moved onto the T1 by rigid registration.",
        'Look at the overlay; set registration = "off" if it is worse.',
    ),
    "E220": Code(
        "Less than 80 % of the brain mask lies in the image's field of view.",
        "Check that the image belongs to this scan and that its position is right.",
    ),
    "W220": Code("The image does not cover the whole brain mask; 0 elsewhere.", "Nothing."),
    "E301": Code(
        "Scans of two patients hold the same voxels; all of these scans are left out.",
        "Correct the manifest, or exclude the wrong row with exclude_reason.",
    ),
    "W301": Code(
        "The same file or the same voxels twice, within one patient or in a mask.",
        "Check the manifest; nothing if the image was meant twice.",
    ),
    "E302": Code(
        "The manifest puts a patient into two splits.",
        "Give all scans of the patient one split.",
    ),
    "E303": Code(
        "An input holds the voxels of the CBV map, which would give the answer away.",
        "Name the right file in the manifest.",
    ),
    "E401": Code("A table beside the images cannot be used.", "Correct it."),
    "I401": Code(
        "A difference (deltam) ASL series has no sidecar; it is used as a relative map.",
        "Put the JSON sidecar beside it if there is one.",
    ),
    "W401": Code("A JSON sidecar cannot be read.", "Write it again; it is not needed to train."),
    "E402": Code(
        "A label is none of recurrence and treatment_response.", "Correct or empty the cell."
    ),
    "E403": Code(
        "No usable measured CBV: kept for synthesis, not used for training or metrics.",
        "Add the map, or exclude the scan.",
    ),
    "W404": Code("labels.csv names a scan that was not found.", "Correct the line."),
    "W405": Code("An age that is no number of years.", "Correct the cell."),
    "E501": Code(
        "A folder's name cannot be an identifier; the scan is left out.",
        "Rename it, or let manifest --pseudonyms make one up.",
    ),
    "W501": Code(
        "An identifier reads like a name or a date.",
        "Replace patient_id and scan_id by pseudonyms such as sub-0007.",
    ),
    "W502": Code(
        "A header field holds free text that may identify; it is never copied.",
        "Empty the field (descrip, aux_file, db_name, intent_name).",
    ),
    "W503": Code(
        "The header has an extension, which may hold DICOM fields; it is never copied.",
        "Write the file without extensions.",
    ),
    "W504": Code(
        "The gzip header holds another file name; it is never copied.",
        "Compress again without the name (gzip -n).",
    ),
    "W505": Code(
        "The sidecar has keys that may identify; it is never copied.",
        "Remove these keys from the sidecar.",
    ),
    "W506": Code(
        "A file or folder name reads like a name or a date.",
        "Rename it after the pseudonym.",
    ),
    "W507": Code("An age above 89 years, which may identify.", "Give 89, or leave it empty."),
}

_SEVERITY: dict[str, Severity] = {"E": "error", "W": "warning", "I": "info"}


def severity(code: str) -> Severity:
    """How grave a finding is: something is left out, to be looked at, or only to be known."""
    if code not in CODES:
        msg = f"no code {code!r} in the registry"
        raise ValueError(msg)
    return _SEVERITY[code[0]]


def reference_page() -> str:
    """The text of ``docs/reference/codes.md``."""
    rows = [f"| {c} | {severity(c)} | {e.meaning} | {e.action} |" for c, e in CODES.items()]
    lines = [
        "# Codes of findings",
        "",
        "Made from `sites/codes.py`; a test keeps the two the same. The command",
        "`iedn-client --site NAME check` prints the findings of a cohort. An error leaves out a",
        "file, a scan or (E302, E402) the whole manifest; a warning is used nevertheless and",
        "should be looked at; an info needs nothing.",
        "",
        "| code | severity | what was found | what to do |",
        "|---|---|---|---|",
        *rows,
        "",
        "## Rules",
        "",
        "- **E301**: voxels are compared as decoded numbers, in the order of the file, so that",
        "  another header, compression or file name does not hide a copy; another orientation or",
        "  rounding does. Whose image it is cannot be told from the files, and keeping either",
        "  could put one brain into training and test: all scans concerned are left out, whatever",
        "  their order. Masks are not compared. Rows with an `exclude_reason` are not read, so",
        "  excluding the wrong row frees the right one.",
        "- **W207**: ADC medians of 0.0003 to 0.003, 0.3 to 3 and 300 to 3000 are mm²/s and its",
        "  thousandths and millionths; CBF 10 to 120 ml/100 g/min; CBV 1 to 8 ml/100 g.",
        "- The same patient at two sites is not noticed: no site sees the other's scans.",
        "- Images that are shifted against the T1 are no finding where registration is off; the",
        "  overlays show them, and `check --gallery` measures and sorts them.",
    ]
    return "\n".join(lines) + "\n"
