//! Constants of the engine that is asked about: own runs where there are some, else the prior.

use std::collections::BTreeSet;
use std::path::Path;

use super::server::ServerOptions;
use super::sources::Sources;
use crate::Result;
use crate::calibrate::predict::Chosen;
use crate::calibrate::{Calibration, Group, Prior, own, own_file, pool};
use crate::config::DeviceSpec;
use crate::plan::points::{self, Point};

/// What a file holds: what `calibrate` wrote, or points to fit.
pub(crate) fn calibrations(path: &Path, sources: &Sources) -> Result<Vec<Calibration>> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return own_file::read(path);
    }
    calibrate_all(&points::read(path)?, sources)
}

/// Fits every group of rows of a file, each from the prior and its own rows alone.
pub(crate) fn calibrate_all(points: &[Point], sources: &Sources) -> Result<Vec<Calibration>> {
    let latency = sources.latency_of();
    let rows = pool::prepare(points, &latency)?;
    let prior = Prior::shipped()?;
    let groups: BTreeSet<&Group> = rows.iter().map(|r| &r.group).collect();
    let fit = |group: &Group| {
        let mine: Vec<&pool::Prepared> = rows.iter().filter(|r| r.group == *group).collect();
        own::fit(group, &mine, prior, &|i| points[i].id.clone())
    };
    Ok(groups.into_iter().map(fit).collect())
}

/// What the engine of `sources` adds for a model on a device, with its error: own runs where the group
/// has some, else the prior; this program's own kernels cost what their profile says.
pub(super) fn chosen(
    sources: &Sources,
    calibrations: &[Calibration],
    server: &ServerOptions,
    (model, device): (&str, &DeviceSpec),
) -> Result<Chosen> {
    let engine = sources.engine().to_owned();
    let group = Group { engine, model: model.to_owned(), gpu: device.name.clone() };
    let mut chosen = Chosen::of(&group, calibrations)?;
    if group.engine == "none" {
        chosen.default = sources.costs()?;
    }
    chosen.default = server.applied(model, &chosen.default.on(&group.engine, device))?;
    Ok(chosen)
}
