"""Sorts CloudEvents by `sequence` as text: one event in JSON a line on stdin, read by PyPI's `cloudevents`; the `chain` of each on
stdout, in that order.
"""

import sys

from cloudevents.core.formats.json import JSONFormat

read = JSONFormat().read
events = []
for line in sys.stdin.buffer:
    attributes = read(None, line).get_attributes()
    events.append((attributes["sequence"], attributes["chain"]))
if not all(isinstance(sequence, str) for sequence, _ in events):
    sys.exit("a sequence is no text")
events.sort(key=lambda event: event[0])
sys.stdout.write("".join(f"{chain}\n" for _, chain in events))
