"""Every family of models gives with SampleAttention what it gives with its eager attention."""

import pytest
import torch
from conftest import FAMILIES, NEARLY_ALL, PROMPT, SPARSE, WINDOW

