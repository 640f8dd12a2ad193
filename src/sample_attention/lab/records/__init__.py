"""Records: measurements as lines of JSON, where they come from, and how they are read back."""

from .forms import BENCH, EVAL
from .lines import Kinds, Row, append_record, check_fields, read_lines
from .provenance import Provenance, commit_of_checkout, device_name, installed_version, origin
from .rows import Form, Record, machine_of, read_rows
from .tables import RecordTable

__all__ = [
    "BENCH",
    "EVAL",
    "Form",
    "Kinds",
    "Provenance",
    "Record",
    "RecordTable",
    "Row",
    "append_record",
    "check_fields",
    "commit_of_checkout",
    "device_name",
    "installed_version",
    "machine_of",
    "origin",
    "read_lines",
    "read_rows",
]
