//! Expert parallelism: tokens to the ranks of their experts (dispatch), and what the experts make of them back
//! (combine).
//!
//! Experts lie on ranks in contiguous blocks ([`Placement`]). A rank sends its rows in the order of destination,
//! token and slot, so that an expert finds its rows in the order of source rank, token and slot: the order that
//! one rank with all tokens would have. Its products are then the same, and with a copy for each token and
//! expert ([`Copies::TokenExpert`]) so is the weighted sum, which the source adds up in the order of slots. With
//! one copy for each token and rank ([`Copies::TokenRank`]) every destination adds up its own experts first, and
//! the source adds the ranks' sums in their order: fewer bytes, another rounding.

use half::bf16;

use crate::comm::Group;
use crate::kernels::Routed;
use crate::{Error, Result};

/// Which rank holds which experts: blocks as equal as can be, the larger ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Experts of the layer.
    pub experts: usize,
    /// Ranks.
    pub ranks: usize,
}

impl Placement {
    /// Experts of a rank; none where there are fewer experts than ranks.
    pub fn experts_of(&self, rank: usize) -> std::ops::Range<usize> {
        let (each, more) = (self.experts / self.ranks, self.experts % self.ranks);
        let start = |rank: usize| rank * each + rank.min(more);
        start(rank)..start(rank + 1)
    }

    /// The rank of an expert.
    pub fn owner(&self, expert: usize) -> usize {
        let (each, more) = (self.experts / self.ranks, self.experts % self.ranks);
        let in_larger = more * (each + 1);
        if expert < in_larger {
            expert / (each + 1)
        } else {
            more + (expert - in_larger) / each.max(1)
        }
    }
}

/// How often a token's row is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Copies {
    /// Once for each of its experts.
    TokenExpert,
    /// Once for each rank that has one of its experts or more.
    TokenRank,
}

/// Number format of rows on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// Single precision.
    F32,
    /// Rounded to bf16 when sent, in either direction, also to oneself.
    Bf16,
}

impl Wire {
    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    fn write(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
            Self::Bf16 => out.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes())),
        }
    }

    fn read(self, bytes: &[u8], out: &mut Vec<f32>) {
        match self {
            Self::F32 => out.extend(
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            ),
            Self::Bf16 => {
                out.extend(
                    bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
                );
            }
        }
    }
}

/// What a layer's exchange is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Which rank holds which experts.
    pub placement: Placement,
    /// Experts per token.
    pub top_k: usize,
    /// Width of a row.
    pub hidden: usize,
    /// How often a row is sent.
    pub copies: Copies,
    /// In which format.
    pub wire: Wire,
}

/// One use of a received row: by an expert, with the weight of the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Use {
    /// Number of the received row.
    row: u32,
    /// Weight of the expert's result.
    weight: f32,
}

/// Rows that a rank has received, ready for its experts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Received {
    /// Input of each expert's row, `[rows, hidden]`.
    pub x: Vec<f32>,
    /// Local expert of each row: the first of this rank is 0.
    pub ids: Vec<u32>,
}

/// What one rank knows of a dispatch, to send the results back.
#[derive(Clone, Debug)]
pub struct Dispatched {
    layout: Layout,
    tokens: usize,
    /// Rows to each rank, and from each.
    sent: Vec<usize>,
    received: Vec<usize>,
    /// First sent row of each (token, slot); [`u32::MAX`] where its sum comes with an earlier slot.
    row_of_pair: Vec<u32>,
    /// Weights of the source, for copies by expert.
    weights: Vec<f32>,
    /// Uses of the received rows, in the order of [`Received::ids`].
    uses: Vec<Use>,
}

/// Bytes of what goes before the rows: the expert and the weight of each use, and the uses of each row.
const USE_BYTES: usize = 12;

/// Sends the rows of `x`, `[tokens, hidden]`, to the ranks of their experts.
///
/// # Errors
/// [`Error::Usage`] when the input does not fit the layout or names an expert that is none;
/// [`Error::Device`] when the group is broken or another rank sends what cannot be.
pub fn dispatch(
    group: &dyn Group,
    layout: Layout,
    x: &[f32],
    routed: &Routed,
) -> Result<(Dispatched, Received)> {
    let tokens = check(group, &layout, x, routed)?;
    let (ranks, top_k) = (group.size(), layout.top_k);
    // Rows in the order of destination, token, slot: the pairs of each row.
    let mut rows: Vec<Vec<(usize, Vec<usize>)>> = vec![Vec::new(); ranks];
    for token in 0..tokens {
        for slot in 0..top_k {
            let pair = token * top_k + slot;
            let rank = layout.placement.owner(routed.ids[pair] as usize);
            match rows[rank].last_mut() {
                Some((of, pairs)) if layout.copies == Copies::TokenRank && *of == token => {
                    pairs.push(pair);
                }
                _ => rows[rank].push((token, vec![pair])),
            }
        }
    }
    let sent: Vec<usize> = rows.iter().map(Vec::len).collect();
    let mut row_of_pair = vec![u32::MAX; routed.ids.len()];
    let mut heads: Vec<Vec<u8>> = vec![Vec::new(); ranks];
    let mut body = Vec::with_capacity(sent.iter().sum::<usize>() * row_bytes(&layout));
    let mut number = 0;
    for (rank, rows) in rows.iter().enumerate() {
        let first = layout.placement.experts_of(rank).start;
        for (token, pairs) in rows {
            row_of_pair[pairs[0]] = number;
            number += 1;
            for (i, &pair) in pairs.iter().enumerate() {
                // Below the number of experts, which fits.
                let local = routed.ids[pair] - u32::try_from(first).unwrap_or(0);
                let is_first = u32::from(i == 0);
                heads[rank].extend(is_first.to_le_bytes());
                heads[rank].extend(local.to_le_bytes());
                heads[rank].extend(routed.weights[pair].to_le_bytes());
            }
            layout.wire.write(&x[token * layout.hidden..][..layout.hidden], &mut body);
        }
    }
    let uses_sent: Vec<usize> = heads.iter().map(|head| head.len() / USE_BYTES).collect();
    let (received, uses_received) = counts(group, &sent, &uses_sent)?;
    let head = all_to_all(group, &heads.concat(), (&uses_sent, &uses_received), USE_BYTES)?;
    let body = all_to_all(group, &body, (&sent, &received), row_bytes(&layout))?;
    let own = layout.placement.experts_of(group.rank()).len();
    let (uses, ids) = uses_of(&head, &uses_received, &received, own)?;
    let mut inputs = Vec::with_capacity(body.len() / layout.wire.bytes());
    layout.wire.read(&body, &mut inputs);
    let mut gathered = Vec::with_capacity(uses.len() * layout.hidden);
    for of in &uses {
        gathered.extend_from_slice(&inputs[of.row as usize * layout.hidden..][..layout.hidden]);
    }
    let weights = routed.weights.clone();
    let dispatched = Dispatched { layout, tokens, sent, received, row_of_pair, weights, uses };
    Ok((dispatched, Received { x: gathered, ids }))
}

/// Sends what the experts made of the received rows, `y` in the order of [`Received::ids`], back, and adds it
/// up: `[tokens, hidden]`.
///
/// # Errors
/// [`Error::Usage`] when `y` does not fit; [`Error::Device`] when the group is broken.
pub fn combine(group: &dyn Group, dispatched: &Dispatched, y: &[f32]) -> Result<Vec<f32>> {
    let Dispatched { layout, tokens, sent, received, row_of_pair, weights, uses } = dispatched;
    let hidden = layout.hidden;
    if y.len() != uses.len() * hidden {
        let reason = format!("{} values for {} rows of {hidden}", y.len(), uses.len());
        return Err(Error::usage("results of experts", reason));
    }
    let mut back = Vec::with_capacity(received.iter().sum::<usize>() * row_bytes(layout));
    match layout.copies {
        Copies::TokenExpert => layout.wire.write(y, &mut back),
        Copies::TokenRank => {
            let mut sum = vec![0.0; hidden];
            let rows = uses.chunk_by(|a, b| a.row == b.row);
            let mut at = 0;
            for row in rows {
                for (i, of) in row.iter().enumerate() {
                    add(&mut sum, of.weight, &y[at * hidden..][..hidden], i == 0);
                    at += 1;
                }
                layout.wire.write(&sum, &mut back);
            }
        }
    }
    let back = all_to_all(group, &back, (received, sent), row_bytes(layout))?;
    let mut results = Vec::with_capacity(back.len() / layout.wire.bytes());
    layout.wire.read(&back, &mut results);
    let row = |number: u32| &results[number as usize * hidden..][..hidden];
    let mut out = vec![0.0; tokens * hidden];
    for (token, out) in out.chunks_exact_mut(hidden).enumerate() {
        let pairs = token * layout.top_k..(token + 1) * layout.top_k;
        match layout.copies {
            Copies::TokenExpert => {
                for (slot, pair) in pairs.enumerate() {
                    add(out, weights[pair], row(row_of_pair[pair]), slot == 0);
                }
            }
            Copies::TokenRank => {
                // Rows are numbered by their destination first.
                let mut numbers: Vec<u32> =
                    row_of_pair[pairs].iter().copied().filter(|n| *n != u32::MAX).collect();
                numbers.sort_unstable();
                for (i, number) in numbers.into_iter().enumerate() {
                    add(out, 1.0, row(number), i == 0);
                }
            }
        }
    }
    Ok(out)
}

impl Dispatched {
    /// Rows sent to each rank.
    pub fn sent(&self) -> &[usize] {
        &self.sent
    }

    /// Rows received from each rank.
    pub fn received(&self) -> &[usize] {
        &self.received
    }
}

/// `sum + weight x row`; the first row of a sum makes it.
fn add(sum: &mut [f32], weight: f32, row: &[f32], is_first: bool) {
    if is_first {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s = weight * v);
    } else {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += weight * v);
    }
}

const fn row_bytes(layout: &Layout) -> usize {
    layout.hidden * layout.wire.bytes()
}

fn check(group: &dyn Group, layout: &Layout, x: &[f32], routed: &Routed) -> Result<usize> {
    let wrong = |reason: String| Err(Error::usage("exchange", reason));
    let Layout { placement, top_k, hidden, .. } = *layout;
    if placement.ranks != group.size() {
        return wrong(format!("laid out for {} ranks, not {}", placement.ranks, group.size()));
    }
    let tokens = routed.ids.len() / top_k.max(1);
    if hidden == 0
        || routed.ids.len() != tokens * top_k
        || routed.weights.len() != routed.ids.len()
        || x.len() != tokens * hidden
        || u32::try_from(routed.ids.len()).is_err()
    {
        return wrong(format!("x, ids and weights do not fit {tokens} tokens of width {hidden}"));
    }
    match routed.ids.iter().find(|id| **id as usize >= placement.experts) {
        Some(id) => wrong(format!("expert {id} of {}", placement.experts)),
        None => Ok(tokens),
    }
}

/// Tells every rank how many rows and uses come, and hears it from them.
fn counts(group: &dyn Group, rows: &[usize], uses: &[usize]) -> Result<(Vec<usize>, Vec<usize>)> {
    let own: Vec<u8> = rows
        .iter()
        .zip(uses)
        .flat_map(|(rows, uses)| [*rows as u64, *uses as u64])
        .flat_map(u64::to_le_bytes)
        .collect();
    let ones = vec![1; group.size()];
    let all = all_to_all(group, &own, (&ones, &ones), 16)?;
    let number = |bytes: &[u8]| {
        let bytes = bytes.try_into().map(u64::from_le_bytes).ok();
        bytes.and_then(|n| usize::try_from(n).ok()).filter(|n| u32::try_from(*n).is_ok())
    };
    let pairs = all.chunks_exact(16).map(|b| Some((number(&b[..8])?, number(&b[8..])?)));
    pairs.collect::<Option<_>>().ok_or_else(broken)
}

/// Sends parts of some elements each.
fn all_to_all(
    group: &dyn Group,
    send: &[u8],
    (to, from): (&[usize], &[usize]),
    bytes: usize,
) -> Result<Vec<u8>> {
    let lengths = |parts: &[usize]| {
        parts.iter().map(|n| n.checked_mul(bytes)).collect::<Option<Vec<_>>>().ok_or_else(broken)
    };
    let (to, from) = (lengths(to)?, lengths(from)?);
    let mut receive = vec![0; from.iter().sum()];
    group.all_to_all_v((send, &to), (&mut receive, &from))?;
    Ok(receive)
}

/// What is to be done with the received rows, and the local expert of each use.
fn uses_of(
    head: &[u8],
    uses: &[usize],
    rows: &[usize],
    experts: usize,
) -> Result<(Vec<Use>, Vec<u32>)> {
    let mut all = Vec::with_capacity(head.len() / USE_BYTES);
    let mut ids = Vec::with_capacity(all.capacity());
    let mut row = 0_u32;
    let mut words = head.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let mut expected = 0;
    for (uses, rows) in uses.iter().zip(rows) {
        expected += rows;
        for i in 0..*uses {
            let next = (words.next(), words.next(), words.next());
            let (Some(first), Some(id), Some(weight)) = next else { return Err(broken()) };
            let is_first = u32::from_le_bytes(first) == 1;
            let id = u32::from_le_bytes(id);
            if id as usize >= experts || (i == 0 && !is_first) {
                return Err(broken());
            }
            row += u32::from(is_first);
            all.push(Use { row: row - 1, weight: f32::from_le_bytes(weight) });
            ids.push(id);
        }
        if row as usize != expected {
            return Err(broken());
        }
    }
    Ok((all, ids))
}

fn broken() -> Error {
    Error::device("exchange", "a rank sends rows that cannot be")
}

#[cfg(test)]
mod tests;
