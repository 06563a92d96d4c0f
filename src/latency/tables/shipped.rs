//! The compact tables of five devices that come with the program.
//!
//! Made by `just tables` from aiconfigurator's Parquet files; source, commit and date stand in each
//! file's header ([`super::series::Origin`]), the licence in `shipped/NOTICE`.

#[cfg(not(feature = "native"))]
use std::collections::BTreeMap;
use std::sync::Arc;
#[cfg(feature = "native")]
use std::sync::OnceLock;
#[cfg(not(feature = "native"))]
use std::sync::{Mutex, PoisonError};

use super::codec::from_bytes;
use super::series::EngineTables;
use crate::config::DeviceSpec;

/// Name of the file that holds the tables of a device of this name.
pub fn file_name(device: &str) -> String {
    format!("{device}.tables")
}

/// Name of the device ([`DeviceSpec::short_name`]) and the bytes of its tables.
#[cfg(feature = "native")]
const FILES: [(&str, &[u8]); 5] = [
    ("a100_sxm", include_bytes!("shipped/a100_sxm.tables")),
    ("h100_sxm", include_bytes!("shipped/h100_sxm.tables")),
    ("h200_sxm", include_bytes!("shipped/h200_sxm.tables")),
    ("b200_sxm", include_bytes!("shipped/b200_sxm.tables")),
    ("gb200", include_bytes!("shipped/gb200.tables")),
];

/// Tables that were opened before.
#[cfg(feature = "native")]
static OPENED: [OnceLock<Option<Arc<EngineTables>>>; FILES.len()] =
    [const { OnceLock::new() }; FILES.len()];

/// The tables of a device, if it is one of the five. They are unpacked once, in about 20 ms.
#[cfg(feature = "native")]
pub fn shipped(device: &DeviceSpec) -> Option<Arc<EngineTables>> {
    let name = device.short_name();
    let index = FILES.iter().position(|(known, _)| *known == name)?;
    OPENED[index].get_or_init(|| from_bytes(name, FILES[index].1).ok().map(Arc::new)).clone()
}

/// The tables of a device, if the page brought them along.
#[cfg(not(feature = "native"))]
pub fn shipped(device: &DeviceSpec) -> Option<Arc<EngineTables>> {
    static OPENED: Mutex<BTreeMap<String, Arc<EngineTables>>> = Mutex::new(BTreeMap::new());
    let name = device.short_name();
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = opened.get(name) {
        return Some(Arc::clone(known));
    }
    let bytes = crate::files::read_capped(file_name(name).as_ref(), u64::MAX).ok()?;
    let tables = Arc::new(from_bytes(name, &bytes).ok()?);
    opened.insert(name.to_owned(), Arc::clone(&tables));
    Some(tables)
}

#[cfg(test)]
mod tests {
    use super::super::TablesModel;
    use super::*;
    use crate::latency::model::LatencyModel;
    use crate::latency::query::Operation;

    #[test]
    fn all_embedded_tables_open_and_name_their_source() {
        let total: usize = FILES.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(total < 3_500_000, "{total}");
        for (name, _) in FILES {
            let device = DeviceSpec::load(name).unwrap();
            let tables = shipped(&device).unwrap();
            assert_eq!(tables.device, device.name);
            assert!(tables.cells() > 100_000 && tables.origin.commit.is_some(), "{name}");
            let model = TablesModel::new(tables, &device, Some("trtllm")).unwrap();
            assert!(!model.is_moved());
            for operation in [Operation::Moe, Operation::Gemm, Operation::DecodeAttention] {
                let words = model.provenance(operation).unwrap();
                assert!(words.starts_with("aiconfigurator, trtllm 1."), "{words}");
            }
        }
        assert!(shipped(&DeviceSpec::load("h100_nvl").unwrap()).is_none());
    }
}
