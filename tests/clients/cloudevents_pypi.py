"""Builds CloudEvents with PyPI's `cloudevents` from a broker's messages: MQTT binding, binary mode.

One publish a line on stdin: {"content_type", "properties": [[name, value]], "payload": base64}. One event a line on
stdout, after it went through the package's own JSON format and back: attributes by name, and "data" in base64.
"""

import base64
import json
import sys

from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from dateutil.parser import isoparse

for line in sys.stdin:
    publish = json.loads(line)
    attributes = dict(publish["properties"])
    if len(attributes) != len(publish["properties"]):
        sys.exit("an attribute occurs twice")
    attributes["datacontenttype"] = publish["content_type"]
    attributes["time"] = isoparse(attributes["time"])
    event = CloudEvent(attributes, base64.b64decode(publish["payload"]))  # it checks names, types and required attributes
    structured = JSONFormat()
    event = structured.read(None, structured.write(event))
    found = dict(event.get_attributes())
    # In milliseconds, as they are sent.
    found["time"] = event.get_time().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    found["data"] = base64.b64encode(event.get_data()).decode()
    print(json.dumps(found))
