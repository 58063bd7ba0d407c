"""Tells schemathesis how to put HL7 v2 into a body: like text, whatever the media type."""

import schemathesis


@schemathesis.serializer("application/hl7-v2", "application/hl7-v2+er7", "x-application/hl7-v2", "x-application/hl7-v2+er7")
def hl7(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
