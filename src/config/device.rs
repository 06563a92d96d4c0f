//! Devices by their published figures: peaks, memory, link and price, each with its source.
//!
//! Peaks are what a vendor prints, not what kernels reach; a measured profile replaces them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bounds::Quantity;
use crate::config::DType;
use crate::config::nearest::unknown_name;
use crate::error::positive;
use crate::files::{read_capped, strict};
use crate::units::UsdPerHour;
use crate::{Error, Result};

const FILES: [&str; 17] = [
    include_str!("presets/devices/h100_sxm.toml"),
    include_str!("presets/devices/h200_sxm.toml"),
    include_str!("presets/devices/h100_nvl.toml"),
    include_str!("presets/devices/a100_sxm.toml"),
    include_str!("presets/devices/a100_pcie.toml"),
    include_str!("presets/devices/b200_sxm.toml"),
    include_str!("presets/devices/gb200.toml"),
    include_str!("presets/devices/h100_pcie.toml"),
    include_str!("presets/devices/h20.toml"),
    include_str!("presets/devices/h800_sxm.toml"),
    include_str!("presets/devices/l40s.toml"),
    include_str!("presets/devices/rtx_pro_6000.toml"),
    include_str!("presets/devices/b300_sxm.toml"),
    include_str!("presets/devices/gb300.toml"),
    include_str!("presets/devices/mi300x.toml"),
    include_str!("presets/devices/mi325x.toml"),
    include_str!("presets/devices/mi355x.toml"),
];

/// A device file of a user is never longer.
const CAP: u64 = 1 << 20;

/// One kind of accelerator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Name to print.
    pub name: String,
    /// Names it is found by.
    pub aliases: Vec<String>,
    /// Where the figures were published.
    pub source: String,
    /// Memory in bytes.
    pub memory_bytes: f64,
    /// Peak memory bandwidth in bytes per second.
    pub read_bytes_per_s: f64,
    /// Peak link bandwidth inside a scale-up domain in bytes per second and direction.
    pub link_bytes_per_s: f64,
    /// Device whose shipped kernel tables stand in where it has none of its own: the same chip with
    /// other memory or power.
    #[serde(default)]
    pub kernel_tables: Option<String>,
    /// Board power in watts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watts: Option<f64>,
    /// Figures without a confirmed source: fields, or formats of the rates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unverified: Vec<String>,
    /// What kind of machine it is.
    #[serde(default)]
    pub kind: DeviceKind,
    /// Devices of one scale-up domain (an NVLink node or rack).
    #[serde(default = "usual_domain")]
    pub scale_up_devices: usize,
    /// Links between scale-up domains, where stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_out: Option<ScaleOut>,
    /// Peak dense rate in FLOP/s by number format.
    pub flops_per_s: BTreeMap<DType, f64>,
    /// Prices, the first one being the default.
    #[serde(default)]
    pub prices: Vec<Price>,
}

/// Kinds of serving machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// An accelerator; several make a replica.
    #[default]
    Gpu,
    /// The CPUs of one host, which serve alone.
    Cpu,
}

/// Links between scale-up domains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaleOut {
    /// Bandwidth per device and direction in bytes per second.
    pub bytes_per_s: f64,
    /// Fixed time of one message in seconds.
    pub latency_s: f64,
    /// Where the figures come from.
    pub source: String,
}

/// Eight devices share a node unless a file says otherwise.
const fn usual_domain() -> usize {
    8
}

/// What a price is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriceKind {
    /// What owning costs: purchase, power and operation over the life of the device.
    Ownership,
    /// What it is rented for.
    #[default]
    Market,
}

impl PriceKind {
    /// Its name in words.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ownership => "ownership cost",
            Self::Market => "market price",
        }
    }
}

/// A price of one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Kind of offer.
    pub tier: String,
    /// What it is of.
    #[serde(default)]
    pub kind: PriceKind,
    /// Dollars per device and hour.
    pub usd_per_hour: f64,
    /// When the price was seen.
    pub date: String,
    /// Where.
    pub source: String,
}

impl Price {
    /// Source, offer, kind and date in words.
    pub fn describe(&self) -> String {
        format!("{} ({}, {}, {})", self.source, self.tier, self.kind.label(), self.date)
    }
}

impl DeviceSpec {
    /// A known device by name, or one from a TOML file of the same form.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown name with the nearest ones; [`Error::Io`] and
    /// [`Error::BadFile`] for a file.
    pub fn load(name: &str) -> Result<Self> {
        if let Some(device) = Self::named(name) {
            return Ok(device);
        }
        let path = Path::new(name);
        if path.extension().is_some_and(|e| e == "toml") {
            return Self::read(path);
        }
        let aliases: Vec<String> = Self::known()?.into_iter().flat_map(|d| d.aliases).collect();
        let nearest = match unknown_name("device", name, aliases.iter().map(String::as_str)) {
            Error::Usage { reason, .. } => reason,
            other => other.to_string(),
        };
        let way =
            "`device show h100 --toml > mine.toml` prints a file to edit, for --device mine.toml";
        Err(Error::usage("device", format!("{nearest}; {way}")))
    }

    /// A device that comes with the program, by name or alias.
    pub fn named(name: &str) -> Option<Self> {
        Self::known().ok()?.into_iter().find(|device| device.is_called(name))
    }

    /// All devices that come with the program.
    ///
    /// # Errors
    /// [`Error::BadFile`] if an embedded file is damaged, which a test excludes.
    pub fn known() -> Result<Vec<Self>> {
        FILES.iter().map(|text| Self::parse("device preset", text)).collect()
    }

    /// A known device by what its driver prints, its name or an alias.
    pub fn recognised(name: &str) -> Option<Self> {
        Self::of_driver_name(name).or_else(|| Self::named(name))
    }

    /// Whether both are the same device, by whatever name each goes.
    pub fn is_same(&self, other: &Self) -> bool {
        let known =
            |of: &Self| Self::recognised(&of.name).map_or_else(|| of.name.clone(), |d| d.name);
        self.name == other.name || known(self) == known(other)
    }

    /// The device whose driver prints this name, if it is a known one.
    pub fn of_driver_name(printed: &str) -> Option<Self> {
        let known = [
            ("H100 80GB HBM3", "h100_sxm"),
            ("H100 NVL", "h100_nvl"),
            ("H200", "h200_sxm"),
            ("A100-SXM4-80GB", "a100_80gb"),
            ("H100 PCIe", "h100_pcie"),
            ("H20", "h20"),
            ("H800", "h800_sxm"),
            ("L40S", "l40s"),
            ("RTX PRO 6000", "rtx_pro_6000"),
            ("GB300", "gb300"),
            ("B300", "b300"),
            ("GB200", "gb200"),
            ("B200", "b200"),
        ];
        // Whole words: a GH200 is not an H200.
        let is_in = |part: &str| format!(" {printed}").contains(&format!(" {part}"));
        let found = known.into_iter().find(|(part, _)| is_in(part));
        // DeepEP's published tables name their device without its variant; they ran on SXM nodes.
        let (_, name) = found.or((printed == "NVIDIA H100").then_some(("", "h100_sxm")))?;
        Self::load(name).ok()
    }

    fn read(path: &Path) -> Result<Self> {
        let bytes = read_capped(path, CAP)?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_| Error::bad_file(path, "is not UTF-8"))?;
        Self::parse(&path.display().to_string(), text)
    }

    /// The device as a file of the form that [`Self::load`] reads.
    ///
    /// # Errors
    /// [`Error::Unfit`] if it cannot be written, which its form excludes.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::unfit("device file", e.to_string()))
    }

    /// Says which required fields a file lacks, all at once.
    fn refuse_missing(location: &str, text: &str) -> Result<()> {
        const NEEDED: [&str; 7] = [
            "name",
            "aliases",
            "source",
            "memory_bytes",
            "read_bytes_per_s",
            "link_bytes_per_s",
            "flops_per_s",
        ];
        let Ok(table) = strict::from_toml::<toml::Table>(text, CAP) else { return Ok(()) };
        let missing: Vec<&str> =
            NEEDED.into_iter().filter(|field| !table.contains_key(*field)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::bad_file(location, format!("missing fields: {}", missing.join(", "))))
    }

    fn parse(location: &str, text: &str) -> Result<Self> {
        Self::refuse_missing(location, text)?;
        let device: Self = strict::from_toml(text, CAP)
            .map_err(|e| Error::bad_file(location, one_line(&e, text)))?;
        let numbers = [
            ("memory_bytes", device.memory_bytes, Quantity::MemoryBytes),
            ("read_bytes_per_s", device.read_bytes_per_s, Quantity::BytesPerSecond),
            ("link_bytes_per_s", device.link_bytes_per_s, Quantity::BytesPerSecond),
        ];
        if device.scale_up_devices == 0 {
            return Err(Error::bad_file(location, "scale_up_devices is 0"));
        }
        let links = device
            .scale_out
            .iter()
            .map(|s| ("bytes_per_s", s.bytes_per_s, Quantity::BytesPerSecond));
        for latency in device.scale_out.iter().map(|s| s.latency_s) {
            positive("latency_s", latency).map_err(|e| Error::bad_file(location, e.to_string()))?;
        }
        let rates = device.flops_per_s.values();
        let rates = rates.map(|&v| ("flops_per_s", v, Quantity::FlopsPerSecond));
        let prices = device.prices.iter();
        let prices = prices.map(|p| ("usd_per_hour", p.usd_per_hour, Quantity::UsdPerHour));
        let all = numbers.into_iter().chain(links).chain(rates).chain(prices);
        for (name, value, quantity) in all {
            positive(name, value)
                .and_then(|value| quantity.check_flag(name, value))
                .map_err(|e| Error::bad_file(location, e.to_string()))?;
        }
        Ok(device)
    }

    /// Its alias that names files: the longest one with its form factor (`h100_sxm`, `gb200`).
    pub fn short_name(&self) -> &str {
        let form = self.aliases.iter().find(|a| a.ends_with("_sxm") || a.ends_with("_nvl"));
        form.or(self.aliases.first()).map_or(self.name.as_str(), String::as_str)
    }

    fn is_called(&self, name: &str) -> bool {
        let plain = name.to_lowercase().replace('-', "_");
        self.aliases.contains(&plain) || self.name.eq_ignore_ascii_case(name)
    }

    /// Peak dense rate in a number format, if published.
    pub fn peak(&self, dtype: DType) -> Option<f64> {
        self.flops_per_s.get(&dtype).copied()
    }

    /// The default price, if one is known.
    pub fn price(&self) -> Option<(UsdPerHour, &Price)> {
        self.prices.first().map(|p| (UsdPerHour(p.usd_per_hour), p))
    }
}

/// A TOML error as `line:column: reason`.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let at = error.span().map_or(0, |s| s.start);
    let before = text.get(..at).unwrap_or("");
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, str::len) + 1;
    format!("{line}:{column}: {}", error.message().replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_devices_load_by_name_and_alias() {
        for name in ["h100", "H100 SXM", "h100-sxm", "H200", "b200", "a100_80gb", "h100_nvl"] {
            assert!(DeviceSpec::load(name).is_ok(), "{name}");
        }
        let h100 = DeviceSpec::load("h100").unwrap();
        assert!((h100.peak(DType::Bf16).unwrap() - 989e12).abs() < 1.0);
        assert!((h100.price().unwrap().0.0 - 1.69).abs() < 1e-12);
        assert!(DeviceSpec::load("h20").unwrap().price().is_none());
        let kinds: Vec<PriceKind> = h100.prices.iter().map(|p| p.kind).collect();
        assert!(kinds.contains(&PriceKind::Ownership) && kinds.contains(&PriceKind::Market));
        let described = h100.price().unwrap().1.describe();
        assert!(described.contains("ownership cost"), "{described}");
    }

    #[test]
    fn an_unknown_device_gets_suggestions() {
        let error = DeviceSpec::load("h10").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(text.contains("h100") && text.contains("--toml"), "{text}");
    }

    #[test]
    fn a_file_of_the_same_form_is_read_and_a_bad_one_refused_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        let load = |text: &str| {
            std::fs::write(&path, text).unwrap();
            DeviceSpec::load(path.to_str().unwrap())
        };
        assert_eq!(load(FILES[0]).unwrap().name, "H100 SXM");
        for device in DeviceSpec::known().unwrap() {
            assert_eq!(load(&device.to_toml().unwrap()).unwrap(), device);
        }
        for (from, to, place) in [
            ("memory_bytes = 8.000e10", "memory_bytes = -1.0", "memory_bytes"),
            ("memory_bytes = 8.000e10", "memory_bytes = nan", "memory_bytes"),
            ("memory_bytes = 8.000e10\n", "", "memory_bytes"),
            (
                "memory_bytes = 8.000e10\nread_bytes_per_s = 3.350e12\n",
                "",
                "memory_bytes, read_bytes_per_s",
            ),
            ("memory_bytes", "memory", "memory"),
            ("usd_per_hour = 1.69\n", "", "usd_per_hour"),
        ] {
            let error = load(&FILES[0].replacen(from, to, 1)).unwrap_err();
            assert_eq!(error.exit_code(), 3);
            assert!(error.to_string().contains(place), "{error}");
        }
        assert_eq!(DeviceSpec::load("no/such.toml").unwrap_err().exit_code(), 7);
    }
}
