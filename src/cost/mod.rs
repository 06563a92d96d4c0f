//! From a latency profile to step time, memory, throughput and dollars.
