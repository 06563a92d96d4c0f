//! Order statistics and intervals; no distribution is assumed.
