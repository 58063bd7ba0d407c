"""The asyncio client of the PyPI package hl7: PORT COUNT [CA CERTIFICATE KEY]. Prints each message and its answer."""

import asyncio
import base64
import json
import ssl
import sys

import hl7
from hl7.mllp import open_hl7_connection


async def main(port, count, *tls):
    context = None
    if tls:
        ca, certificate, key = tls
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(certificate, key)
    reader, writer = await open_hl7_connection(
        "localhost", int(port), ssl=context, encoding="iso-8859-1", encoding_errors="strict"
    )
    for number in range(int(count)):
        text = (
            f"MSH|^~\\&|ASYNCIO|SURG|PGW|B86022|20261122101500||ADT^A08|py-{number}|P|2.4||||||8859/1\r"
            f"PID|1||EX{number}^^^TEST||M\u00fcller^J\u00f6rg\r"
        )
        message = hl7.parse(text)
        writer.writemessage(message)
        await writer.drain()
        answer = await asyncio.wait_for(reader.readmessage(), 30)
        msa = answer.segment("MSA")
        sent = base64.b64encode(str(message).encode("iso-8859-1")).decode()
        print(json.dumps({"sent": sent, "id": f"py-{number}", "code": str(msa[1]), "answered": str(msa[2])}))
    writer.close()


asyncio.run(main(*sys.argv[1:]))
