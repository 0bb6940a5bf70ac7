"""What is shown, wherever it is shown: tables, numbers as people read them, and HTML for notebooks; without torch."""

import random
from importlib import import_module

# Rich draws a number where it is imported, which would move the draws of the user's script.
_state = random.getstate()
import_module("rich.style")
random.setstate(_state)
