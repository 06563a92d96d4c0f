//! This machine as the source of latencies: its newest stored profile, or one measured now.

use std::sync::Arc;
use std::time::Duration;

use crate::ask::sources::{Item, of_machine};
use crate::cli::measure::{DeviceChoice, measure};
use crate::cli::rank::RankArgs;
use crate::cli::store;
use crate::config::{DType, DeviceSpec};
use crate::latency::LatencyTable;
use crate::latency::measured::table::{Policy, Transfer};
use crate::measure::Request;
use crate::measure::sampling::BlockRule;
use crate::measure::worker::Facts;
use crate::record::{Cell, Device, Profile};
use crate::workload::RoutingKind;
use crate::{Error, Result};

/// What is known of this machine before it is measured.
pub(super) enum Machine {
    /// A stored profile of it.
    Stored(Box<Item>),
    /// Nothing yet.
    Unmeasured(Box<Device>),
}

impl Machine {
    /// The newest stored profile of this machine that says something about shapes it did not
    /// measure, or the device that is to be measured.
    ///
    /// # Errors
    /// When this machine's device cannot be used.
    pub(super) fn find(again: bool) -> Result<Self> {
        let Facts { device, kernel_sha256: kernels, .. } = DeviceChoice::Auto.facts()?;
        let policy = Policy { transfer: Transfer::AnyShape, include_noisy: true };
        let transfers = |profile: &Profile| {
            LatencyTable::new(profile, policy).is_ok_and(|t| t.transfer_error().is_some())
        };
        let stored = store::folder()
            .ok()
            .filter(|_| !again)
            .and_then(|folder| store::newest(&folder, &device.sha256(), &kernels, transfers));
        Ok(stored.map_or_else(
            || Self::Unmeasured(Box::new(device)),
            |(path, profile)| {
                let origin = path.display().to_string();
                Self::Stored(Box::new(Item::Own { origin, profile: Arc::new(profile) }))
            },
        ))
    }

    /// The device, with its rates where they were measured.
    ///
    /// # Errors
    /// As [`Item::device`].
    pub(super) fn device(&self) -> Result<DeviceSpec> {
        match self {
            Self::Stored(item) => item.device(),
            Self::Unmeasured(device) => Ok(of_machine(device)),
        }
    }

    /// A profile that covers layers of `widths` and the experts and experts a token that are `asked`: the stored one, or one measured now.
    ///
    /// # Errors
    /// See [`measure`].
    pub(super) fn profile(
        self,
        args: &RankArgs,
        widths: &[(usize, usize)],
        asked: (&[usize], usize),
    ) -> Result<Item> {
        match self {
            Self::Stored(item) if matches!(&*item, Item::Own { profile, .. } if covers(profile, widths, asked)) => {
                Ok(*item)
            }
            Self::Stored(_) | Self::Unmeasured(_) => now(args, widths, asked),
        }
    }
}

/// Measures this machine; the run is kept as `measure` keeps it.
fn now(args: &RankArgs, widths: &[(usize, usize)], asked: (&[usize], usize)) -> Result<Item> {
    let request = |facts: &Facts| request(args, widths, asked, facts);
    let (profile, kept) = measure(DeviceChoice::Auto, request)?;
    let origin = match kept {
        Some(path) => format!("measured now, kept as {}", path.display()),
        None => "measured now".into(),
    };
    if !profile.cells.iter().any(Cell::is_usable) {
        return Err(Error::unfit("profile", "no usable cell"));
    }
    Ok(Item::Own { origin, profile: Arc::new(profile) })
}

/// Whether a profile's cells lie within a factor of two of every layer asked about.
fn covers(
    profile: &Profile,
    widths: &[(usize, usize)],
    (experts, top_k): (&[usize], usize),
) -> bool {
    let span = |of: fn(&Cell) -> usize| {
        let values = || profile.cells.iter().filter(|c| c.is_usable()).map(of);
        Some((values().min()?, values().max()?))
    };
    let within = |value: usize, span: Option<(usize, usize)>| {
        span.is_some_and(|(low, high)| low <= 2 * value && value <= 2 * high)
    };
    let (hidden, inter, most) = (span(|c| c.hidden), span(|c| c.inter), span(|c| c.experts));
    profile.cells.iter().any(|c| c.is_usable() && c.top_k == top_k)
        && widths.iter().all(|w| within(w.0, hidden) && within(w.1, inter))
        && experts.iter().all(|e| most.is_some_and(|(_, high)| *e <= 2 * high))
}

/// What is measured for a ranking: quick blocks, as many experts a token as its models have.
/// Cells are timed in every way that a cost may rest on.
fn request(
    args: &RankArgs,
    widths: &[(usize, usize)],
    (experts, top_k): (&[usize], usize),
    facts: &Facts,
) -> Request {
    Request {
        widths: widths.to_vec(),
        experts: experts.to_vec(),
        top_k,
        gated: true,
        tokens: None,
        dtype: DType::Bf16,
        routing: RoutingKind::Uniform,
        seed: args.seed,
        budget: Duration::from_secs_f64(args.time_budget.0.min(86_400.0)),
        rule: BlockRule::QUICK,
        modes: facts.modes.iter().copied().filter(|mode| mode.is_costed()).collect(),
    }
}
