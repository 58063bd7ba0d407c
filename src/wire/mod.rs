//! On the wire: topics, envelopes, payloads and signatures (`docs/wire-format.md` is the contract). Pure.
