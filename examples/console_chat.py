"""An answer in the terminal: a live view of its Markdown; plain text where there is no terminal.

`pip install "queuestream[cli]"`, then `python console_chat.py`.
"""

import sys

from queuestream.demo import PASSAGE, DemoChatModel
from queuestream.ui import console_stream

model = DemoChatModel(passage=f"# Streams\n\n{PASSAGE}", pace=0.01)

try:
    answer = console_stream(model, "What is a stream?")
except KeyboardInterrupt:
    sys.exit(130)

print(f"({len(answer.text.split())} words)")
