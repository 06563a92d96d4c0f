//! STUB until merge
use crate::config::DeviceSpec;
use crate::latency::*;
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;
/// x
pub struct EngineTables {
    /** x */
    pub device: String,
}
/// x
pub struct TablesModel;
impl TablesModel {
    /// x
    pub fn new(_t: Arc<EngineTables>, _d: &DeviceSpec, _e: Option<&str>) -> Result<Self> {
        Ok(Self)
    }
}
impl LatencyModel for TablesModel {
    fn answer(&self, _q: &Query) -> Answer {
        Err(Absent::Operation)
    }
    fn provenance(&self, _o: Operation) -> Option<String> {
        None
    }
}
/// x
pub fn is_tables(_b: &Path) -> Result<bool> {
    Ok(false)
}
/// x
pub fn read(p: &Path) -> Result<EngineTables> {
    Err(Error::bad_file(p, "stub"))
}
/// x
pub fn shipped(_d: &DeviceSpec) -> Result<Option<Arc<EngineTables>>> {
    Ok(None)
}
