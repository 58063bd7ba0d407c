"""Tells schemathesis how HL7 v2 goes into a body: as text is, whatever the media type is called."""

import schemathesis


@schemathesis.serializer("application/hl7-v2", "application/hl7-v2+er7", "x-application/hl7-v2+er7")
def hl7(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
