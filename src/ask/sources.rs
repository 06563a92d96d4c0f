//! Where latencies come from, the same for every question.
//!
//! An item is a profile of this program, a file of imported tables, a device whose measured tables
//! are shipped, or `roofline:DEVICE`. They are asked in the given order, operation by operation; what
//! none of them holds is answered by the device's roofline and labelled so.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::calibrate::Group;
use crate::calibrate::predict::Chosen;
use crate::config::device::{DeviceKind, Price, PriceKind};
use crate::config::{DType, DeviceSpec};
use crate::files::read_capped;
use crate::latency::measured::table::{Policy, Transfer};
use crate::latency::measured::{format, validate};
use crate::latency::tables::{self, EngineTables, TablesModel};
use crate::latency::{LatencyModel, LatencyTable, Operation, RooflineModel, Stack};
use crate::record::{Device, Profile};
use crate::serving::{EngineCosts, MemoryBudget};
use crate::units::UsdPerHour;
use crate::{Error, Result};

/// Engine whose tables and constants are used unless named.
pub(crate) const DEFAULT_ENGINE: &str = "vllm";

/// A general-purpose cloud machine costs about this much per thread and hour: $0.2016 for the four of
/// an `m7i.xlarge`, on demand.
const USD_PER_THREAD_HOUR: f64 = 0.05;

/// Longest file of latencies that is read, in bytes.
const CAP: u64 = format::CAP;

/// Where latencies come from and which engine runs the kernels.
///
/// The default asks the shipped tables of the device, with vLLM.
#[derive(Clone, Default)]
pub struct SourceOptions {
    /// Asked in this order: a profile that `measure` wrote, a file that `import` wrote, a device with
    /// shipped tables (`h100`), or `roofline:DEVICE`.
    pub profile: Vec<String>,
    /// Latency models of your own with their names, asked before `profile`.
    pub own: Vec<(String, Arc<dyn LatencyModel>)>,
    /// Engine whose kernels and constants are used: `vllm`, `sglang` or `trtllm`; `none` prices this
    /// program's own kernels without a server. By default vLLM; none with a profile of this program.
    pub engine: Option<String>,
    /// Use cells of a profile whose interval stayed wide.
    pub include_noisy: bool,
}

impl SourceOptions {
    /// The sources of these names, asked in this order.
    ///
    /// ```
    /// use moe_frontier::SourceOptions;
    /// let options = SourceOptions::of(["mine.json", "h100"]);
    /// assert_eq!(options.profile, ["mine.json", "h100"]);
    /// ```
    pub fn of<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Self {
        Self { profile: names.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// Price of a serving device.
#[derive(Clone, Debug, PartialEq)]
pub enum DevicePrice {
    /// Dollars per device and hour.
    PerHour(UsdPerHour),
    /// A published tier of the device, such as `hyperscaler`.
    Tier(String),
}

/// One item of [`SourceOptions::profile`].
#[derive(Clone)]
pub(crate) enum Item {
    /// A profile of this program.
    Own {
        /// File or how it came to be.
        origin: String,
        /// Its content.
        profile: Arc<Profile>,
    },
    /// Tables of engines from a file.
    Imported {
        /// The file.
        origin: String,
        /// Its content.
        tables: Arc<EngineTables>,
    },
    /// A device whose tables are shipped.
    Shipped(DeviceSpec),
    /// A device by its published peaks.
    Roofline(DeviceSpec),
}

impl Item {
    /// Reads what a word of `--profile` names.
    ///
    /// # Errors
    /// For a file that cannot be read or is neither profile nor tables, and for an unknown name.
    pub(crate) fn read(text: &str) -> Result<Self> {
        if let Some(device) = text.strip_prefix("roofline:") {
            return Ok(Self::Roofline(DeviceSpec::load(device)?));
        }
        let path = Path::new(text);
        let is_device_file = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("toml"));
        let is_path = path.extension().is_some() || text.contains(std::path::MAIN_SEPARATOR);
        if is_device_file || !is_path {
            return DeviceSpec::load(text).map(Self::Shipped).map_err(|e| match e {
                Error::Usage { reason, .. } => Error::usage(
                    "--profile",
                    format!(
                        "{reason}; files of `measure` end in .json, of `import` in .mft or .tables; \
                         roofline:DEVICE takes the published peaks"
                    ),
                ),
                other => other,
            });
        }
        let origin = text.to_owned();
        let bytes = read_capped(path, CAP)?;
        if tables::is_tables(&bytes) {
            let tables = Arc::new(tables::codec::from_bytes(text, &bytes)?);
            return Ok(Self::Imported { origin, tables });
        }
        if tables::from_group::is_group(&bytes) {
            let record = tables::from_group::read(path, bytes.clone())?;
            let tables = Arc::new(tables::from_group::tables(text, &bytes, &record));
            return Ok(Self::Imported { origin, tables });
        }
        let profile = format::from_bytes(path, &bytes)?;
        validate::validate(text, &profile)?;
        Ok(Self::Own { origin, profile: Arc::new(profile) })
    }

    /// The device that its latencies are of.
    pub(crate) fn device(&self) -> Result<DeviceSpec> {
        match self {
            Self::Own { profile, .. } => Ok(device_of(profile)),
            Self::Imported { origin, tables } => {
                tables::tables_model::device(tables).ok_or_else(|| {
                    let reason = "its peaks are not known; name a known one with --device";
                    Error::unfit(format!("{origin}: tables of `{}`", tables.device), reason)
                })
            }
            Self::Shipped(device) | Self::Roofline(device) => Ok(device.clone()),
        }
    }

    /// Its name in answers.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Own { origin, .. } | Self::Imported { origin, .. } => origin.clone(),
            Self::Shipped(device) if tables::shipped(&with_tables(device)).is_some() => {
                format!("shipped tables of {}", with_tables(device).name)
            }
            Self::Shipped(device) | Self::Roofline(device) => {
                format!("published peaks of {}", device.name)
            }
        }
    }
}

/// What [`SourceOptions`] resolve to.
pub(crate) struct Sources {
    items: Vec<Item>,
    own_models: Vec<(String, Arc<dyn LatencyModel>)>,
    engine: Option<String>,
    include_noisy: bool,
    stacks: Mutex<HashMap<(String, String), Arc<Stack>>>,
}

impl Sources {
    /// Reads every item.
    ///
    /// # Errors
    /// As [`Item::read`]; an unknown engine.
    pub(crate) fn read(options: &SourceOptions) -> Result<Self> {
        let items = options.profile.iter().map(|text| Item::read(text)).collect::<Result<_>>()?;
        Self::new(items, options)
    }

    /// The same from items at hand.
    ///
    /// # Errors
    /// An unknown engine.
    pub(crate) fn new(items: Vec<Item>, options: &SourceOptions) -> Result<Self> {
        if let Some(engine) = &options.engine
            && !["vllm", "sglang", "trtllm", "none"].contains(&engine.as_str())
        {
            let reason = format!("`{engine}` is none of vllm, sglang, trtllm, none");
            return Err(Error::usage("--engine", reason));
        }
        Ok(Self {
            items,
            own_models: options.own.clone(),
            engine: options.engine.clone(),
            include_noisy: options.include_noisy,
            stacks: Mutex::default(),
        })
    }

    /// The items in order.
    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    /// The first profile of this program among them.
    pub(crate) fn own(&self) -> Option<(&str, &Profile)> {
        self.items.iter().find_map(|item| match item {
            Item::Own { origin, profile } => Some((origin.as_str(), profile.as_ref())),
            _ => None,
        })
    }

    /// The device that the first item is of, if there is one.
    ///
    /// # Errors
    /// As [`Item::device`].
    pub(crate) fn device(&self) -> Result<Option<DeviceSpec>> {
        self.items.first().map(Item::device).transpose()
    }

    /// The engine that is priced: the one named, none for this program's own kernels, else the
    /// default.
    pub(crate) fn engine(&self) -> &str {
        match (&self.engine, self.items.first()) {
            (Some(named), _) => named,
            (None, Some(Item::Own { .. })) => "none",
            (None, _) => DEFAULT_ENGINE,
        }
    }

    /// What the engine adds, before a device limits it ([`EngineCosts::on`]).
    ///
    /// # Errors
    /// [`Error::Usage`] for `none` without a profile of this program.
    pub(crate) fn costs(&self) -> Result<EngineCosts> {
        if self.engine() != "none" {
            // The prior without a group: what every model and device starts from.
            let engine = self.engine().to_owned();
            let group = Group { engine, model: String::new(), gpu: String::new() };
            return Ok(Chosen::of(&group, &[])?.costs());
        }
        let (_, profile) = self
            .own()
            .ok_or_else(|| Error::usage("--engine", "none needs a profile that `measure` wrote"))?;
        let table = LatencyTable::new(profile, self.policy())?;
        Ok(EngineCosts::bare(table.ceilings().layer_overhead_s))
    }

    /// Latencies on a device with kernels of an engine, built once each: the items in order, then
    /// the measured ceilings of a profile, then the device's roofline. Without items the device's
    /// shipped tables come first.
    ///
    /// # Errors
    /// A profile without a usable cell, tables that cannot be carried to the device.
    pub(crate) fn stack(&self, device: &DeviceSpec, engine: &str) -> Result<Arc<Stack>> {
        let key = (device.name.clone(), engine.to_owned());
        let known = || self.stacks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stack) = known().get(&key) {
            return Ok(Arc::clone(stack));
        }
        let stack = Arc::new(Stack::new(self.models(device, engine)?));
        known().insert(key, Arc::clone(&stack));
        Ok(stack)
    }

    fn models(&self, device: &DeviceSpec, engine: &str) -> Result<Vec<Arc<dyn LatencyModel>>> {
        let mut models: Vec<Arc<dyn LatencyModel>> =
            self.own_models.iter().map(|(_, model)| Arc::clone(model)).collect();
        let mut items = self.items.clone();
        if items.is_empty() {
            items.push(Item::Shipped(device.clone()));
        }
        // Tables of the device itself come before those that are carried over from another one.
        items.sort_by_key(|item| item.device().is_ok_and(|of| !of.is_same(device)));
        let engine = Some(engine).filter(|e| *e != "none");
        // A roofline answers every operation: measured ceilings wait until all items were asked.
        let mut ceilings = None;
        let mut ends_in_roofline = false;
        for item in &items {
            match item {
                Item::Own { origin, profile } => {
                    let own = device_of(profile);
                    refuse_other(origin, &own, device)?;
                    models.push(Arc::new(LatencyTable::new(profile, self.policy())?));
                    ceilings.get_or_insert(RooflineModel::measured_ceilings(&own)?);
                }
                Item::Imported { tables, .. } => {
                    models.push(Arc::new(TablesModel::new(Arc::clone(tables), device, engine)?));
                }
                Item::Shipped(of) => {
                    if let Some(tables) = tables::shipped(&with_tables(of)) {
                        models.push(Arc::new(TablesModel::new(tables, device, engine)?));
                    }
                }
                Item::Roofline(of) => {
                    refuse_other(&format!("roofline:{}", of.name), of, device)?;
                    models.push(Arc::new(RooflineModel::published(of)?));
                    ends_in_roofline = true;
                }
            }
        }
        if !ends_in_roofline {
            let last = ceilings.map_or_else(|| RooflineModel::published(device), Ok)?;
            models.push(Arc::new(last));
        }
        Ok(models)
    }

    /// How cells of a profile may be used.
    pub(crate) const fn policy(&self) -> Policy {
        Policy { transfer: Transfer::AnyShape, include_noisy: self.include_noisy }
    }

    /// [`Self::stack`] as predictions take it.
    pub(crate) fn latency_of(
        &self,
    ) -> impl Fn(&DeviceSpec, &str) -> Result<Arc<dyn LatencyModel>> + Sync + '_ {
        |device, engine| {
            // Rows of a file name their own engines; a profile without one has none.
            let engine = if self.engine() == "none" { "none" } else { engine };
            Ok(self.stack(device, engine)? as Arc<dyn LatencyModel>)
        }
    }

    /// The shipped tables that these sources ask, cut to an engine's own and some formats of weights, with
    /// the names that a page brings them along by.
    ///
    /// # Errors
    /// As [`tables::pack::excerpt`].
    #[cfg(feature = "cli")]
    pub(crate) fn brought(
        &self,
        device: &DeviceSpec,
        weights: &[DType],
    ) -> Result<Vec<(String, Vec<u8>)>> {
        let own = [Item::Shipped(device.clone())];
        let items = if self.items.is_empty() { &own[..] } else { &self.items };
        let mut files = Vec::new();
        for item in items {
            let Item::Shipped(device) = item else { continue };
            let device = with_tables(device);
            let Some(shipped) = tables::shipped(&device) else { continue };
            let bytes = tables::pack::excerpt(&shipped, self.engine(), weights)?;
            files.push((tables::shipped::file_name(device.short_name()), bytes));
        }
        Ok(files)
    }

    /// The names of all items, for answers.
    pub(crate) fn names(&self, device: &DeviceSpec) -> String {
        let own = self.own_models.iter().map(|(name, _)| name.clone());
        let shipped = self.items.is_empty().then(|| Item::Shipped(device.clone()).name());
        let items = self.items.iter().map(Item::name).chain(shipped);
        own.chain(items).collect::<Vec<_>>().join(", then ")
    }
}

/// The device whose shipped tables stand for `device`: its own, or those of its nearest kin.
fn with_tables(device: &DeviceSpec) -> DeviceSpec {
    let kin = device.kernel_tables.as_deref().and_then(DeviceSpec::named);
    kin.unwrap_or_else(|| device.clone())
}

/// Tables can be carried to another device; a profile and a roofline hold no bytes to carry.
fn refuse_other(origin: &str, of: &DeviceSpec, device: &DeviceSpec) -> Result<()> {
    if of.is_same(device) {
        return Ok(());
    }
    let reason =
        format!("it says nothing about {}; leave out --device or this source", device.name);
    Err(Error::unfit(format!("{origin} is of {}", of.name), reason))
}

/// Who answered an operation, in words.
pub(crate) fn origin_in(stack: &Stack) -> impl Fn(Operation, u8) -> Option<String> + '_ {
    |operation, origin| stack.origin(operation, origin)
}

/// The device that a profile of this program was measured on: its measured ceilings, and memory,
/// links and price as far as they are known.
pub(crate) fn device_of(profile: &Profile) -> DeviceSpec {
    let spec = of_machine(&profile.key.device);
    let ceilings = &profile.run.ceilings;
    let dtype = profile.cells.iter().find(|c| c.is_usable()).map_or(DType::Bf16, |c| c.dtype);
    let mut flops_per_s = spec.flops_per_s;
    for format in [DType::Bf16, DType::F16, dtype] {
        flops_per_s.insert(format, ceilings.gemm_flops_per_s);
    }
    DeviceSpec { read_bytes_per_s: ceilings.read_bytes_per_s, flops_per_s, ..spec }
}

/// What is known of a machine before anything is measured on it.
pub(crate) fn of_machine(device: &Device) -> DeviceSpec {
    let name = device.name().to_owned();
    let unmeasured = DeviceSpec {
        aliases: Vec::new(),
        source: "this machine".into(),
        memory_bytes: device.memory_bytes() as f64,
        read_bytes_per_s: 1.0,
        link_bytes_per_s: 1.0,
        kernel_tables: None,
        watts: None,
        unverified: Vec::new(),
        kind: DeviceKind::Gpu,
        scale_up_devices: 1,
        scale_out: None,
        flops_per_s: std::collections::BTreeMap::new(),
        prices: Vec::new(),
        name: name.clone(),
    };
    match device {
        Device::Cpu(cpu) => {
            let price = Price {
                tier: "general-purpose cloud".into(),
                kind: PriceKind::Market,
                usd_per_hour: USD_PER_THREAD_HOUR * cpu.threads as f64,
                date: "2026-11".into(),
                source: "stated: $0.05 per thread and hour, on demand".into(),
            };
            DeviceSpec { kind: DeviceKind::Cpu, prices: vec![price], ..unmeasured }
        }
        Device::Gpu(_) => match DeviceSpec::of_driver_name(&name) {
            Some(known) => DeviceSpec { name, ..known },
            None => unmeasured,
        },
    }
}

/// Price of a device with where it comes from: the one given, else its first published one.
///
/// # Errors
/// [`Error::Usage`] for an unknown tier, or a device without a price.
pub(crate) fn price(
    given: Option<&DevicePrice>,
    device: &DeviceSpec,
) -> Result<(UsdPerHour, String)> {
    let published = |p: &Price| (UsdPerHour(p.usd_per_hour), p.describe());
    let (found, reason) = match given {
        Some(DevicePrice::PerHour(price)) => return Ok((*price, "given".into())),
        None => {
            let reason = format!("no price of {} is known; give its dollars per hour", device.name);
            (device.prices.first(), reason)
        }
        Some(DevicePrice::Tier(tier)) => {
            let known: Vec<&str> = device.prices.iter().map(|p| p.tier.as_str()).collect();
            let known = known.join(", ");
            let reason = format!("no tier `{tier}` of {}; known: {known}", device.name);
            (device.prices.iter().find(|p| p.tier == *tier), reason)
        }
    };
    found.map(published).ok_or_else(|| Error::usage("--price", reason))
}

/// Memory of a device as an engine uses it, in words.
pub(crate) fn memory_rule(memory: &MemoryBudget) -> String {
    format!("{:.0}% of {} less {}", 100.0 * memory.usable_share, memory.device, memory.reserve)
}
