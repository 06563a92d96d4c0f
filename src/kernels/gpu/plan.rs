//! Which kernels run a layer: chosen from numbers that the host knows, with the reason in words.
//!
//! The choice follows the rows that an expert gets. With uniform routing `A = E (1 - (1 - k/E)^T)`
//! experts are active, each with `m = T k / A` rows on average. Hot experts are no special case: an
//! expert with many rows has many tiles. The thresholds are starting points that wait for measured
//! crossovers.

use std::fmt;

use crate::gpu::DeviceFacts;
use crate::kernels::MoeShape;
use crate::kernels::gpu::launches::GATE_TOKENS;
use crate::kernels::gpu::registry::{product_kernel, router_kernel};
use crate::kernels::gpu::{
    Combine, Family, LogitFormat, MoeOptions, PRODUCTS, Product, ProductKernel, ROUTER_GATE,
    RouterInput, WeightFormat, Workspace, WorkspaceLayout, options,
};
use crate::{Error, Result};

/// Most pairs that the router's last block aligns by itself, which saves a launch.
pub(crate) const FUSED_ALIGN_PAIRS: u32 = 1024;

/// Up to where each family is chosen, in rows per active expert unless told otherwise. None is measured yet.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Matrix-vector products: how many times they may read the weights of an active expert, as expected
    /// of the distribution of its rows. Their tile holds four rows, with which single-precision arithmetic
    /// keeps up with the stream of weights; tiles of one expert are worked on far apart, so that a fifth
    /// row reads its weights from memory again.
    pub gemv_reads: f64,
    /// Hopper tiles of 64 rows; above, tiles of 128.
    pub rows64: f64,
    /// Hopper tiles of 128 rows; above, tiles of 256 read each weight once for up to 256 rows.
    pub rows128: f64,
    /// Hopper tiles of 256 rows; above, weights are read from the cache anyway and the wider tile of
    /// 128 rows moves least.
    pub rows256: f64,
    /// Inner size from which the second product's wide tile is used: shorter sums leave its epilogue
    /// uncovered.
    pub wide_down: usize,
    /// How much longer than the quickest Hopper tile a wider one may take by the count of
    /// [`Plan::choose`]: it asks the second-level cache for fewer bytes a product.
    pub wider: f64,
}

impl Thresholds {
    /// The starting points.
    pub const INITIAL: Self = Self {
        gemv_reads: 1.05,
        rows64: 64.0,
        rows128: 128.0,
        rows256: 256.0,
        wide_down: 1024,
        wider: 1.05,
    };
}

/// Columns of the widest tiles of 128 rows of which two alternate in a block, one's sums covering the
/// other's epilogue.
const MOST_SHORT_COLUMNS: u32 = 192;

/// What to launch for a batch of tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// First product.
    pub up: &'static ProductKernel,
    /// Second product.
    pub down: &'static ProductKernel,
    /// Router: one that reads logits, or [`ROUTER_GATE`], which computes them.
    pub router: &'static str,
    /// Rows of a tile.
    pub block_m: u32,
    /// Whether the router's last block also aligns.
    pub fuse_align: bool,
    /// Tokens that one pass over the workspace takes; at most the tokens asked for.
    pub chunk_tokens: u32,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} + {} ({})", self.up.name, self.down.name, self.reason)
    }
}

impl Plan {
    /// Plans `tokens` tokens of a layer on a device.
    ///
    /// Of Hopper tiles with equally many rows the widest is taken that takes at most 5 % longer than
    /// the quickest, counted in columns: turns of all multiprocessors, the last one perhaps in part,
    /// times the columns of a tile, those past the last column of the product included.
    ///
    /// With [`RouterInput::Gate`] the router computes the logits of up to 16 tokens: more would wait for
    /// the one block that then routes them all. For more the plan has the router that reads
    /// single-precision logits, which the caller computes first ([`Plan::computes_logits`]).
    ///
    /// # Errors
    /// [`Error::Usage`] for a shape that the kernels do not take, an unknown or unfit kernel name, or
    /// a workspace limit that not even one token fits; [`Error::Device`] for a device without kernels.
    pub fn choose(
        shape: &MoeShape,
        tokens: u32,
        router: impl Into<RouterInput>,
        device: &DeviceFacts,
        opt: &MoeOptions,
    ) -> Result<Self> {
        options::validate(shape, opt.weights)?;
        let chunk_tokens = chunk(shape, tokens, device, opt)?;
        let products = Products::choose(shape, chunk_tokens, device, opt)?;
        let pairs = options::pairs(shape, chunk_tokens)?;
        let mut reason = products.reason;
        if chunk_tokens < tokens {
            reason = format!("{reason}; {chunk_tokens} tokens at a time fit the workspace");
        }
        let (router, why) = router_of(router.into(), chunk_tokens);
        reason += why;
        Ok(Self {
            up: products.up,
            down: products.down,
            router,
            block_m: products.up.block_m,
            fuse_align: pairs <= FUSED_ALIGN_PAIRS,
            chunk_tokens,
            reason,
        })
    }

    /// Whether the router computes the logits from the layer's input and the router's weights.
    pub fn computes_logits(&self) -> bool {
        self.router == ROUTER_GATE
    }
}

/// The router of a pass, and what there is to say about it.
const fn router_of(input: RouterInput, tokens: u32) -> (&'static str, &'static str) {
    match input {
        RouterInput::Logits(format) => (router_kernel(format), ""),
        RouterInput::Gate if tokens <= GATE_TOKENS => {
            (ROUTER_GATE, "; few tokens: the router computes their logits")
        }
        RouterInput::Gate => (
            router_kernel(LogitFormat::F32),
            "; more tokens than a router computes the logits of: a product before it does",
        ),
    }
}

/// Most tokens, up to `tokens`, whose workspace fits the limit.
fn chunk(shape: &MoeShape, tokens: u32, device: &DeviceFacts, opt: &MoeOptions) -> Result<u32> {
    let bytes = |t: u32| Workspace::bytes(shape, t, device, opt).map(|layout| layout.bytes);
    let Some(limit) = opt.workspace_limit else {
        return Ok(tokens);
    };
    if tokens == 0 || bytes(tokens)? <= limit {
        return Ok(tokens);
    }
    let least = bytes(1)?;
    if least > limit {
        return Err(Error::usage(
            "workspace limit",
            format!("{limit} bytes; one token needs {least}"),
        ));
    }
    // The size grows with the tokens, so the largest that fits is found by halving.
    let (mut fits, mut exceeds) = (1, tokens);
    while exceeds - fits > 1 {
        let middle = fits + (exceeds - fits) / 2;
        if bytes(middle)? <= limit {
            fits = middle;
        } else {
            exceeds = middle;
        }
    }
    Ok(fits)
}

/// Rows that each active expert gets of `tokens` tokens, and the active experts, under uniform
/// routing.
fn expected_rows(shape: &MoeShape, tokens: u32) -> (f64, f64) {
    let experts = shape.experts as f64;
    let missed = (1.0 - shape.top_k as f64 / experts).powf(f64::from(tokens));
    let active = (experts * (1.0 - missed)).max(1.0);
    (f64::from(tokens) * shape.top_k as f64 / active, active)
}

/// Rows of a tile of matrix-vector products.
const GEMV_ROWS: u32 = 4;
/// Rows per active expert from which tiles of four are read many times, whatever the distribution.
const MANY_ROWS: f64 = 16.0;

/// How many times matrix-vector products read the weights of an active expert: tiles of four rows for each,
/// whose number of rows is binomial under uniform routing.
fn gemv_reads(shape: &MoeShape, tokens: u32) -> f64 {
    let (rows, active) = expected_rows(shape, tokens);
    if rows > MANY_ROWS {
        return rows / f64::from(GEMV_ROWS);
    }
    let chosen = (shape.top_k as f64 / shape.experts as f64).min(1.0);
    // Chance of each number of rows, from none on; an expert that all tokens choose has that many.
    let odds = chosen / (1.0 - chosen).max(f64::MIN_POSITIVE);
    let mut chance = (1.0 - chosen).powf(f64::from(tokens));
    let mut tiles = 0.0;
    for n in 1..=tokens {
        chance *= f64::from(tokens - n + 1) / f64::from(n) * odds;
        tiles += chance * f64::from(n.div_ceil(GEMV_ROWS));
    }
    if chosen >= 1.0 {
        tiles = f64::from(tokens.div_ceil(GEMV_ROWS));
    }
    (tiles * shape.experts as f64 / active).max(1.0)
}

/// The two products of a layer.
pub(crate) struct Products {
    pub(crate) up: &'static ProductKernel,
    pub(crate) down: &'static ProductKernel,
    reason: String,
}

impl Products {
    pub(crate) fn choose(
        shape: &MoeShape,
        tokens: u32,
        device: &DeviceFacts,
        opt: &MoeOptions,
    ) -> Result<Self> {
        let (rows, active) = expected_rows(shape, tokens);
        let reads = gemv_reads(shape, tokens);
        let planned = path(rows, reads, device, opt)?;
        let search = Search { shape, rows, active, device, opt };
        let up = match (&opt.up, &opt.down) {
            (Some(name), _) => named(name, Product::Up, device, opt)?,
            (None, Some(name)) => {
                let down = named(name, down_product(opt), device, opt)?;
                search.find(Product::Up, down.block_m, down.family)?
            }
            (None, None) => search.find(Product::Up, planned.1, planned.0)?,
        };
        let down = match &opt.down {
            Some(name) => named(name, down_product(opt), device, opt)?,
            None => search.find(down_product(opt), up.block_m, up.family)?,
        };
        if up.block_m != down.block_m {
            return Err(Error::usage(
                "kernel",
                format!(
                    "{} has tiles of {} rows, {} of {}",
                    up.name, up.block_m, down.name, down.block_m
                ),
            ));
        }
        let reason = if opt.up.is_some() || opt.down.is_some() {
            "as asked for".into()
        } else {
            let columns = if up.family == Family::Sm90 {
                let (up, down) = (up.columns, down.columns);
                format!("; {up} and {down} columns, the widest that fill the device")
            } else {
                String::new()
            };
            // Tiles of one expert that lie next to each other read its weights from memory once.
            let reads = if up.family == Family::Gemv { reads } else { 1.0 };
            let each = 3.0 * shape.hidden as f64 * shape.inter as f64 * opt.weights.bytes() as f64;
            format!(
                "{rows:.1} rows for each of {active:.1} active experts expected: {}, {} rows a \
                 tile, which read {:.3} GB of weights, each {reads:.2} times{columns}",
                up.family.label(),
                up.block_m,
                reads * active * each * 1e-9
            )
        };
        Ok(Self { up, down, reason })
    }
}

const fn down_product(opt: &MoeOptions) -> Product {
    match opt.combine {
        Combine::Fast => Product::DownFast,
        Combine::Bf16 | Combine::F32 => Product::Down,
    }
}

/// Family and rows of a tile for `rows` rows per active expert, whose weights matrix-vector products would
/// read `reads` times.
fn path(rows: f64, reads: f64, device: &DeviceFacts, opt: &MoeOptions) -> Result<(Family, u32)> {
    let t = Thresholds::INITIAL;
    if !Family::Generic.runs_on(device) {
        let (major, minor) = device.compute_capability;
        return Err(Error::device(
            "gpu",
            format!("compute capability {major}.{minor}; the kernels need 8.0"),
        ));
    }
    let (fast, narrow) = (opt.combine == Combine::Fast, opt.weights == WeightFormat::E4m3);
    if reads <= t.gemv_reads && !fast {
        return Ok((Family::Gemv, GEMV_ROWS));
    }
    // Counts scatter around their mean by its square root. An expert that fills a second tile has its
    // weights read twice, so the tile holds one deviation more than the mean.
    let with_room = rows + rows.sqrt();
    let smallest = |sizes: &[u32]| sizes.iter().copied().find(|&s| with_room <= f64::from(s));
    // Generic tiles of 8-bit weights have at most 64 rows.
    let generic = smallest(&[16, 32, 64]).unwrap_or(if narrow { 64 } else { 128 });
    if !Family::Sm90.runs_on(device) || (fast && (narrow || rows <= t.rows64)) {
        return Ok((Family::Generic, generic));
    }
    if fast {
        return Ok((Family::Sm90, 128));
    }
    if let Some(block_m) = smallest(&[8, 16, 32, 64]) {
        return Ok((Family::SwapAb, block_m));
    }
    if narrow {
        return Ok((Family::Generic, generic));
    }
    let block_m = match rows {
        r if r <= t.rows64 => 64,
        r if r <= t.rows128 => 128,
        r if r <= t.rows256 => 256,
        _ => 128,
    };
    Ok((Family::Sm90, block_m))
}

/// A kernel asked for by name.
fn named(
    name: &str,
    product: Product,
    device: &DeviceFacts,
    opt: &MoeOptions,
) -> Result<&'static ProductKernel> {
    let invalid = |reason: String| Err(Error::usage("kernel", reason));
    let Some(kernel) = product_kernel(name) else {
        let known: Vec<&str> = PRODUCTS.iter().map(|k| k.name).collect();
        return invalid(format!("`{name}` is unknown; there are {}", known.join(", ")));
    };
    if kernel.product != product || kernel.weights != opt.weights {
        return invalid(format!("`{name}` computes another product, or reads other weights"));
    }
    if !runs(kernel, device) {
        return invalid(format!("`{name}` does not run on this device"));
    }
    Ok(kernel)
}

const fn runs(kernel: &ProductKernel, device: &DeviceFacts) -> bool {
    kernel.family.runs_on(device) && kernel.shared_bytes <= device.shared_bytes
}

/// What a kernel is searched for.
struct Search<'a> {
    shape: &'a MoeShape,
    /// Rows of each active expert, and their number, as expected.
    rows: f64,
    active: f64,
    device: &'a DeviceFacts,
    opt: &'a MoeOptions,
}

impl Search<'_> {
    /// The kernel of a product for tiles of `block_m` rows: of the family asked for if it has one.
    fn find(
        &self,
        product: Product,
        block_m: u32,
        family: Family,
    ) -> Result<&'static ProductKernel> {
        let fits = |k: &&ProductKernel| {
            (k.product, k.block_m, k.weights) == (product, block_m, self.opt.weights)
                && runs(k, self.device)
        };
        let first = PRODUCTS.iter().filter(fits).min_by_key(|k| k.family != family);
        let first = first.ok_or_else(|| {
            Error::usage(
                "kernel",
                format!(
                    "no kernel computes {product:?} with tiles of {block_m} rows and these options"
                ),
            )
        })?;
        if first.family != Family::Sm90 {
            return Ok(first);
        }
        let tiles = PRODUCTS.iter().filter(fits).filter(|k| k.family == Family::Sm90);
        Ok(self.widest(product, tiles.collect()).unwrap_or(first))
    }

    /// Of tiles with equally many rows the widest that takes hardly longer than the quickest.
    fn widest(
        &self,
        product: Product,
        mut tiles: Vec<&'static ProductKernel>,
    ) -> Option<&'static ProductKernel> {
        let short = product != Product::Up && self.shape.inter < Thresholds::INITIAL.wide_down;
        if short && tiles.iter().any(|k| k.columns <= MOST_SHORT_COLUMNS) {
            tiles.retain(|k| k.columns <= MOST_SHORT_COLUMNS);
        }
        let least = tiles.iter().map(|k| self.device_time(k)).min_by(f64::total_cmp)?;
        let most = Thresholds::INITIAL.wider * least;
        tiles.into_iter().filter(|k| self.device_time(k) <= most).max_by_key(|k| k.columns)
    }

    /// How long a product takes, in columns: turns of all multiprocessors times the columns that one
    /// computes in a turn. Tiles of equally many rows take as long as they are wide.
    fn device_time(&self, kernel: &ProductKernel) -> f64 {
        let columns = match kernel.product {
            Product::Up => self.shape.inter,
            Product::Down | Product::DownFast => self.shape.hidden,
        };
        // Where an expert has several tiles, its last is half full on average.
        let tiles = self.active * (self.rows / f64::from(kernel.block_m) + 0.5).max(1.0);
        let units = tiles * columns.div_ceil(kernel.columns as usize) as f64;
        let turns = (units / f64::from(self.device.sm_count.max(1))).ceil();
        turns * f64::from(kernel.columns)
    }
}

// The workspace depends on the plan's products, and the plan's chunks on the workspace: both start
// from the products alone.
impl Workspace {
    /// The layout that `max_tokens` tokens, and any fewer, need.
    ///
    /// # Errors
    /// As [`Plan::choose`].
    pub fn bytes(
        shape: &MoeShape,
        max_tokens: u32,
        device: &DeviceFacts,
        opt: &MoeOptions,
    ) -> Result<WorkspaceLayout> {
        options::validate(shape, opt.weights)?;
        let block_m = largest_block_m(shape, max_tokens, device, opt)?;
        WorkspaceLayout::new(shape, max_tokens, block_m, device, opt)
    }
}

/// Most rows of a tile that any number of tokens up to `max_tokens` plans. Rows per expert grow with
/// the tokens, and the planned tile changes at thresholds alone, so every threshold below the rows of
/// `max_tokens` is asked.
fn largest_block_m(
    shape: &MoeShape,
    max_tokens: u32,
    device: &DeviceFacts,
    opt: &MoeOptions,
) -> Result<u32> {
    let products = Products::choose(shape, max_tokens, device, opt)?;
    if opt.up.is_some() || opt.down.is_some() {
        return Ok(products.up.block_m);
    }
    let t = Thresholds::INITIAL;
    let (rows, _) = expected_rows(shape, max_tokens);
    // The tiles of matrix-vector products are the smallest.
    let below = [t.rows64, t.rows128, t.rows256].into_iter().filter(|&t| t <= rows);
    below
        .map(|rows| path(rows, f64::INFINITY, device, opt).map(|p| p.1))
        .try_fold(products.up.block_m, |largest, block_m| Ok(largest.max(block_m?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIXTRAL: MoeShape =
        MoeShape { experts: 8, top_k: 2, hidden: 4096, inter: 14336, gated: true };
    const QWEN3: MoeShape =
        MoeShape { experts: 128, top_k: 8, hidden: 2048, inter: 768, gated: true };
    const L4: DeviceFacts = DeviceFacts {
        compute_capability: (8, 9),
        sm_count: 58,
        shared_bytes: 99 * 1024,
        l2_bytes: 48 << 20,
    };

    fn plan_with(shape: &MoeShape, tokens: u32, device: &DeviceFacts, opt: &MoeOptions) -> Plan {
        Plan::choose(shape, tokens, LogitFormat::F32, device, opt).unwrap()
    }

    fn names(shape: &MoeShape, tokens: u32, device: &DeviceFacts) -> (&'static str, &'static str) {
        let plan = plan_with(shape, tokens, device, &MoeOptions::default());
        (plan.up.name, plan.down.name)
    }

    #[test]
    fn kernels_follow_the_rows_that_an_expert_gets_on_hopper() {
        let h100 = &DeviceFacts::H100;
        let up = |shape, tokens| names(shape, tokens, h100).0;
        assert_eq!(up(&MIXTRAL, 0), "gemv_bf16_up");
        assert_eq!(up(&MIXTRAL, 1), "gemv_bf16_up");
        assert_eq!(up(&QWEN3, 64), "swap_ab_sm90_bf16_up_n8");
        assert_eq!(up(&QWEN3, 150), "swap_ab_sm90_bf16_up_n16");
        assert_eq!(up(&QWEN3, 400), "swap_ab_sm90_bf16_up_n32");
        assert_eq!(up(&QWEN3, 800), "swap_ab_sm90_bf16_up_n64");
        assert_eq!(up(&QWEN3, 1000), "grouped_gemm_sm90_bf16_up_m64n256");
        assert_eq!(up(&MIXTRAL, 512), "grouped_gemm_sm90_bf16_up_m128n256");
        assert_eq!(up(&MIXTRAL, 1024), "grouped_gemm_sm90_bf16_up_m256n192");
        let large = names(&MIXTRAL, 16_384, h100);
        assert_eq!(large.1, "grouped_gemm_sm90_bf16_down_m128n256");
        let short = names(&QWEN3, 16_384, h100);
        assert_eq!(short.1, "grouped_gemm_sm90_bf16_down_m128n192");
    }

    #[test]
    fn matrix_vector_products_end_where_experts_would_be_read_twice() {
        // Chances of a fifth row by the binomial distribution, summed by hand.
        for (experts, top_k, tokens, reads) in [
            (8, 2, 1, 1.0),
            (8, 2, 4, 1.0),
            (8, 2, 8, 1.0303),
            (8, 2, 15, 1.3220),
            (32, 2, 62, 1.3672),
            (4, 4, 5, 2.0),
            (1, 1, 4, 1.0),
            (1, 1, 1000, 250.0),
        ] {
            let shape = MoeShape { experts, top_k, ..MIXTRAL };
            let got = gemv_reads(&shape, tokens);
            assert!((got / reads - 1.0).abs() < 2e-3, "{experts} {top_k} {tokens}: {got}");
        }
        let h100 = &DeviceFacts::H100;
        let last = |experts| {
            let shape = MoeShape { experts, ..MIXTRAL };
            let gemv = |t: &u32| names(&shape, *t, h100).0 == "gemv_bf16_up";
            let last = (1..200).take_while(gemv).last().unwrap();
            let (rows, _) = expected_rows(&shape, last);
            assert!((2.0..2.7).contains(&rows), "{experts} experts: {rows} rows");
            last
        };
        assert_eq!(last(8), 8);
        assert!(last(32) > 3 * last(8));
        let plan = plan_with(&MIXTRAL, 8, h100, &MoeOptions::default());
        assert!(plan.reason.contains("read 2.613 GB of weights, each 1.03 times"), "{plan}");
        let plan = plan_with(&MIXTRAL, 15, h100, &MoeOptions::default());
        assert!(plan.reason.contains("read 2.781 GB of weights, each 1.00 times"), "{plan}");
    }

    #[test]
    fn hopper_tiles_are_as_wide_as_fills_the_device() {
        let h100 = &DeviceFacts::H100;
        let plan = |s: &MoeShape, tokens| plan_with(s, tokens, h100, &MoeOptions::default());
        // 2880 columns are 15 tiles of 192, and 12 of 256 that compute 3072.
        let odd = MoeShape { experts: 32, top_k: 4, hidden: 2880, inter: 2880, gated: true };
        let large = plan(&odd, 8192);
        assert_eq!(large.down.name, "grouped_gemm_sm90_bf16_down_m128n192", "{large}");
        assert!(large.reason.contains("128 and 192 columns"), "{large}");
        // Layers that people serve reach every width.
        let mut reached = std::collections::BTreeSet::new();
        for (experts, top_k, hidden, inter) in [
            (8, 2, 4096, 14336),
            (128, 8, 2048, 768),
            (32, 4, 2880, 2880),
            (64, 6, 2048, 1408),
            (16, 1, 5120, 8192),
        ] {
            let shape = MoeShape { experts, top_k, hidden, inter, gated: true };
            for tokens in (1..200).map(|i| 64 * i) {
                let plan = plan(&shape, tokens);
                reached.extend([plan.up.name, plan.down.name]);
            }
        }
        let planned =
            |k: &&ProductKernel| k.family == Family::Sm90 && k.product != Product::DownFast;
        for kernel in PRODUCTS.iter().filter(planned) {
            assert!(reached.contains(kernel.name), "{}: {reached:?}", kernel.name);
        }
    }

    #[test]
    fn routers_compute_the_logits_of_few_tokens() {
        let plan = |tokens, limit| {
            let opt = MoeOptions { workspace_limit: limit, ..MoeOptions::default() };
            Plan::choose(&QWEN3, tokens, RouterInput::Gate, &DeviceFacts::H100, &opt).unwrap()
        };
        let few = plan(16, None);
        assert!(few.computes_logits() && few.reason.contains("computes their logits"), "{few}");
        let more = plan(17, None);
        assert_eq!((more.router, more.computes_logits()), ("router_topk_f32", false));
        assert!(more.reason.contains("a product before"), "{more}");
        let layout = Workspace::bytes(&QWEN3, 9, &DeviceFacts::H100, &MoeOptions::default());
        assert!(plan(17, Some(layout.unwrap().bytes)).computes_logits());
        let narrow = plan_with(&QWEN3, 4, &DeviceFacts::H100, &MoeOptions::default());
        assert_eq!(narrow.router, "router_topk_f32");
    }

    #[test]
    fn other_devices_get_generic_tiles_that_fit_their_shared_memory() {
        for device in [&DeviceFacts::A100, &L4] {
            assert_eq!(names(&QWEN3, 1, device).0, "gemv_bf16_up");
            assert_eq!(names(&QWEN3, 150, device).0, "grouped_gemm_bf16_up_m16");
            assert_eq!(names(&QWEN3, 400, device).0, "grouped_gemm_bf16_up_m32");
            assert_eq!(names(&MIXTRAL, 200, device).0, "grouped_gemm_bf16_up_m64");
            assert_eq!(names(&MIXTRAL, 8192, device).1, "grouped_gemm_bf16_down_m128");
        }
    }

    #[test]
    fn devices_without_kernels_are_told_what_is_needed() {
        let old = DeviceFacts { compute_capability: (7, 5), ..DeviceFacts::A100 };
        let opt = MoeOptions::default();
        let error = Plan::choose(&MIXTRAL, 1, LogitFormat::F32, &old, &opt).unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("7.5") && error.to_string().contains("8.0"), "{error}");
    }

    #[test]
    fn a_kernel_can_be_asked_for_and_its_partner_has_equal_tiles() {
        let opt =
            MoeOptions { up: Some("grouped_gemm_bf16_up_m64".into()), ..MoeOptions::default() };
        let plan = plan_with(&QWEN3, 8, &DeviceFacts::H100, &opt);
        assert_eq!(plan.down.name, "grouped_gemm_bf16_down_m64");
        assert_eq!(plan.reason, "as asked for");
        let opt = MoeOptions {
            down: Some("grouped_gemm_sm90_bf16_down_m256n128".into()),
            ..MoeOptions::default()
        };
        let plan = plan_with(&QWEN3, 8, &DeviceFacts::H100, &opt);
        assert_eq!(plan.up.name, "grouped_gemm_sm90_bf16_up_m256n128");
    }

    #[test]
    fn unknown_and_unfit_kernels_are_refused() {
        let refused = |up: Option<&str>, down: Option<&str>, device: &DeviceFacts| {
            let opt = MoeOptions {
                up: up.map(Into::into),
                down: down.map(Into::into),
                ..MoeOptions::default()
            };
            let error = Plan::choose(&QWEN3, 8, LogitFormat::F32, device, &opt).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let h100 = &DeviceFacts::H100;
        assert!(refused(Some("fastest"), None, h100).contains("grouped_gemm_bf16_up_m16"));
        assert!(refused(Some("gemv_bf16_down"), None, h100).contains("another product"));
        assert!(refused(Some("gemv_w8_up"), None, h100).contains("other weights"));
        let hopper = "grouped_gemm_sm90_bf16_up_m64n256";
        assert!(refused(Some(hopper), None, &DeviceFacts::A100).contains("this device"));
        let (up, down) = ("gemv_bf16_up", "grouped_gemm_bf16_down_m16");
        assert!(refused(Some(up), Some(down), h100).contains("tiles of 4 rows"));
    }

    #[test]
    fn fast_mode_plans_kernels_that_add_to_the_output() {
        let opt = MoeOptions { combine: Combine::Fast, ..MoeOptions::default() };
        for device in [&DeviceFacts::H100, &DeviceFacts::A100, &L4] {
            for tokens in [1, 64, 1024, 16_384] {
                let plan = plan_with(&QWEN3, tokens, device, &opt);
                assert_eq!(plan.down.product, Product::DownFast, "{plan}");
            }
        }
    }

    #[test]
    fn eight_bit_weights_have_their_kernels_and_their_multiple() {
        let opt = MoeOptions { weights: WeightFormat::E4m3, ..MoeOptions::default() };
        let plan = plan_with(&QWEN3, 4, &DeviceFacts::H100, &opt);
        assert_eq!((plan.up.name, plan.down.name), ("gemv_w8_up", "gemv_w8_down"));
        let up = |tokens, device| plan_with(&QWEN3, tokens, device, &opt).up.name;
        assert_eq!(up(150, &DeviceFacts::H100), "swap_ab_sm90_e4m3_up_n16");
        assert_eq!(up(16_384, &DeviceFacts::H100), "grouped_gemm_w8_up_m64");
        assert_eq!(up(150, &L4), "grouped_gemm_w8_up_m16");
        let odd = MoeShape { hidden: 2056, ..QWEN3 };
        assert!(Plan::choose(&odd, 4, LogitFormat::F32, &DeviceFacts::H100, &opt).is_err());
    }

    #[test]
    fn tokens_are_chunked_to_the_workspace_that_is_allowed() {
        let device = &DeviceFacts::H100;
        let whole = plan_with(&QWEN3, 16_384, device, &MoeOptions::default());
        assert_eq!(whole.chunk_tokens, 16_384);
        let opt = MoeOptions { workspace_limit: Some(300 << 20), ..MoeOptions::default() };
        let plan = plan_with(&QWEN3, 16_384, device, &opt);
        assert!((1000..16_384).contains(&plan.chunk_tokens), "{plan}");
        assert!(plan.reason.contains("at a time"), "{plan}");
        let bytes = |t| Workspace::bytes(&QWEN3, t, device, &opt).unwrap().bytes;
        assert!(bytes(plan.chunk_tokens) <= 300 << 20 && bytes(plan.chunk_tokens + 1) > 300 << 20);
        let tiny = MoeOptions { workspace_limit: Some(1000), ..opt };
        let error = Plan::choose(&QWEN3, 2, LogitFormat::F32, device, &tiny).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn small_batches_align_in_the_router() {
        let opt = MoeOptions::default();
        assert!(plan_with(&QWEN3, 128, &DeviceFacts::H100, &opt).fuse_align);
        assert!(!plan_with(&QWEN3, 129, &DeviceFacts::H100, &opt).fuse_align);
    }

    proptest! {
        /// A workspace made for the most tokens serves every batch below: of any plan, the rows and
        /// tiles of the worst routing fit.
        #[test]
        fn a_workspace_for_the_most_tokens_serves_fewer(
            experts in 1usize..300,
            top_k in 1usize..9,
            most in 1u32..20_000,
            part in 0.0f64..1.0,
            hopper in any::<bool>(),
        ) {
            let top_k = top_k.min(experts);
            let shape = MoeShape { experts, top_k, hidden: 64, inter: 64, gated: true };
            let device = if hopper { DeviceFacts::H100 } else { DeviceFacts::A100 };
            let opt = MoeOptions::default();
            let layout = Workspace::bytes(&shape, most, &device, &opt).unwrap();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below most")]
            let tokens = (f64::from(most) * part) as u32;
            let plan = Plan::choose(&shape, tokens, LogitFormat::F32, &device, &opt).unwrap();
            let pairs = u64::from(tokens) * top_k as u64;
            let active = (experts as u64).min(pairs);
            let block_m = u64::from(plan.block_m);
            prop_assert!(pairs + active * (block_m - 1) <= u64::from(layout.capacity_rows));
            prop_assert!(pairs / block_m + active <= u64::from(layout.capacity_tiles));
            let fewer = Workspace::bytes(&shape, tokens, &device, &opt).unwrap();
            prop_assert!(fewer.bytes <= layout.bytes);
        }
    }
}
