//! Shipped kernel tables and measured servers, for the tests and benches of the serving model.

#![allow(dead_code, reason = "each test is a crate of its own and uses a part of this file")]

use std::path::PathBuf;
use std::sync::Arc;

use moe_frontier::config::DeviceSpec;
use moe_frontier::latency::tables::{self, TablesModel};
use moe_frontier::latency::{LatencyModel, RooflineModel, Stack};

/// The folder of recorded data, or `None` with a loud note.
pub(crate) fn data() -> Option<PathBuf> {
    let data = std::env::var("MOE_FRONTIER_DATA").unwrap_or_else(|_| "../shared/data".into());
    let folder = PathBuf::from(data);
    if folder.join("serving_points/dev.csv").is_file() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no {}/serving_points (set MOE_FRONTIER_DATA)", folder.display());
    None
}

/// What commands use by default: the device's shipped tables, then its roofline.
///
/// # Errors
/// When the shipped tables are damaged or the device has no published peaks.
pub(crate) fn shipped(
    device: &DeviceSpec,
    engine: &str,
) -> moe_frontier::Result<Arc<dyn LatencyModel>> {
    let mut models: Vec<Arc<dyn LatencyModel>> = Vec::new();
    let kin = device.kernel_tables.as_deref().map(DeviceSpec::load).transpose()?;
    if let Some(tables) = tables::shipped(kin.as_ref().unwrap_or(device)) {
        models.push(Arc::new(TablesModel::new(tables, device, Some(engine))?));
    }
    models.push(Arc::new(RooflineModel::published(device)?));
    Ok(Arc::new(Stack::new(models)))
}

/// The device's roofline alone.
///
/// # Errors
/// When the device has no published peaks.
pub(crate) fn roofline(device: &DeviceSpec) -> moe_frontier::Result<Arc<dyn LatencyModel>> {
    Ok(Arc::new(RooflineModel::published(device)?))
}
