//! Loss laws: from parameters, tokens and experts to nats per token.
