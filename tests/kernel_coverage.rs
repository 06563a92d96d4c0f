//! No kernel is out of reach and none is untested: each one that the registry names is launched by a
//! plan that nobody had to force, and executed by tests of the emulator with a name. The list stands in
//! `kernels/README.md`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use moe_frontier::Result;
use moe_frontier::gpu::{DeviceAddress, DeviceFacts, Launch, Launcher, Region};
use moe_frontier::kernels::gpu::{
    ALIGN, COMBINE, Combine, Family, LayerBuffers, LogitFormat, Matrix, MoeInput, MoeOptions,
    PRODUCTS, Plan, ROUTER_GATE, ROUTERS, RouterInput, Routing, WeightFormat, Workspace,
    kernel_names, moe_forward,
};
use moe_frontier::kernels::{MoeShape, RouterSpec};

/// Layers that people serve: the usual ones first, then every size between.
const SHAPES: [(usize, usize, usize, usize); 5] = [
    (8, 2, 4096, 14336),
    (128, 8, 2048, 768),
    (64, 6, 2048, 1408),
    (32, 4, 2880, 2880),
    (16, 1, 5120, 8192),
];
/// Tokens of a batch.
const TOKENS: [u32; 16] =
    [1, 4, 16, 32, 64, 128, 256, 384, 512, 640, 768, 1024, 1536, 2048, 4096, 16_384];
const DEVICES: [(&str, DeviceFacts); 2] =
    [("H100", DeviceFacts::H100), ("A100", DeviceFacts::A100)];
/// Where the list stands in `kernels/README.md`.
const MARKS: (&str, &str) = ("<!-- coverage -->\n", "<!-- end of coverage -->\n");

/// Remembers what is launched; has addresses, but no memory.
struct Recorder {
    facts: DeviceFacts,
    next: u64,
    launched: Vec<&'static str>,
}

impl Launcher for Recorder {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn allocate(&mut self, bytes: u64) -> Result<Region> {
        let address = DeviceAddress(self.next);
        self.next += bytes.next_multiple_of(1024);
        Ok(Region { address, bytes })
    }

    fn free(&mut self, _: Region) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, _: Region, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn download(&mut self, _: Region, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn fill(&mut self, _: Region, _: u8) -> Result<()> {
        Ok(())
    }

    fn enqueue(&mut self, launch: &Launch) -> Result<()> {
        self.launched.push(launch.kernel);
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One batch that somebody may ask for; no kernel is named.
struct Request {
    shape: MoeShape,
    tokens: u32,
    device: (&'static str, DeviceFacts),
    router: RouterInput,
    options: MoeOptions,
}

impl Request {
    /// Every combination, the plainest first.
    fn all() -> Vec<Self> {
        let f32_logits = RouterInput::Logits(LogitFormat::F32);
        let settings = [
            (WeightFormat::Bf16, Combine::Bf16, f32_logits),
            (WeightFormat::E4m3, Combine::Bf16, f32_logits),
            (WeightFormat::Bf16, Combine::Bf16, RouterInput::Logits(LogitFormat::Bf16)),
            (WeightFormat::Bf16, Combine::Bf16, RouterInput::Gate),
            (WeightFormat::Bf16, Combine::Fast, f32_logits),
            (WeightFormat::E4m3, Combine::Fast, f32_logits),
        ];
        let mut all = Vec::new();
        for (weights, combine, router) in settings {
            for (device, shape) in DEVICES.iter().flat_map(|d| SHAPES.iter().map(move |s| (*d, *s)))
            {
                let (experts, top_k, hidden, inter) = shape;
                let shape = MoeShape { experts, top_k, hidden, inter, gated: true };
                let options = MoeOptions { weights, combine, ..MoeOptions::default() };
                all.extend(TOKENS.map(|tokens| Self {
                    shape,
                    tokens,
                    device,
                    router,
                    options: options.clone(),
                }));
            }
        }
        all
    }

    /// The kernels of the layer; `None` where the plan leaves the logits to the caller.
    fn launched(&self) -> Option<Vec<&'static str>> {
        let facts = self.device.1;
        let s = &self.shape;
        let plan = Plan::choose(s, self.tokens, self.router, &facts, &self.options).unwrap();
        let board = &mut Recorder { facts, next: 1 << 20, launched: Vec::new() };
        let layout = Workspace::bytes(s, self.tokens, &facts, &self.options).unwrap();
        let workspace = Workspace::new(board, layout).unwrap();
        let mut region = |elements: usize| board.allocate(4 * elements as u64).unwrap();
        let (tokens, scales) = (self.tokens as usize, s.experts * s.hidden * s.inter / 1024);
        let logits = Matrix::dense(region(tokens * s.experts), s.experts as u64);
        let layer = LayerBuffers {
            shape: *s,
            w13: region(s.w13_len().unwrap()),
            w2: region(s.w2_len().unwrap()),
            scales: Some((region(scales), region(scales))),
            router: RouterSpec::softmax(),
            bias: None,
        };
        let input = MoeInput {
            tokens: self.tokens,
            x: Matrix::dense(region(tokens * s.hidden), s.hidden as u64),
            routing: match self.router {
                RouterInput::Logits(format) => Routing::Logits { logits, format },
                RouterInput::Gate => Routing::Gate { gate: region(s.experts * s.hidden), logits },
            },
            out: Matrix::dense(region(tokens * s.hidden), s.hidden as u64),
        };
        let run = moe_forward(board, &plan, &layer, &self.options, &input, &workspace);
        if self.router == RouterInput::Gate && !plan.computes_logits() {
            let error = run.unwrap_err();
            assert!(error.to_string().contains("router_topk_f32 reads logits"), "{error}");
            return None;
        }
        run.unwrap();
        Some(std::mem::take(&mut board.launched))
    }

    /// How a caller asks for it.
    fn words(&self) -> String {
        let s = &self.shape;
        let plural = if self.tokens == 1 { "" } else { "s" };
        let mut words = format!(
            "{}, {} x {} x {} top-{}, {} token{plural}",
            self.device.0, s.experts, s.hidden, s.inter, s.top_k, self.tokens
        );
        if self.options.weights == WeightFormat::E4m3 {
            words += ", fp8 weights";
        }
        if self.options.combine == Combine::Fast {
            words += ", `Combine::Fast`";
        }
        match self.router {
            RouterInput::Logits(LogitFormat::F32) => {}
            RouterInput::Logits(LogitFormat::Bf16) => words += ", bf16 logits",
            RouterInput::Gate => words += ", `RouterInput::Gate`",
        }
        words
    }
}

/// The test that executes a kernel by itself. A kernel that is not named here has none.
fn stage_test(name: &str) -> Option<&'static str> {
    if let Some(kernel) = PRODUCTS.iter().find(|k| k.name == name) {
        return Some(match kernel.family {
            Family::Gemv => "matrix_vector_products_agree_with_the_reference",
            Family::Generic => "generic_products_agree_with_the_reference",
            Family::Sm90 => "hopper_products_agree_with_the_reference",
            Family::SwapAb => "products_with_swapped_operands_agree_with_the_reference",
        });
    }
    match name {
        _ if ROUTERS.contains(&name) || name == ROUTER_GATE => {
            Some("routers_choose_and_weigh_bit_for_bit_as_the_reference")
        }
        _ if ALIGN.contains(&name) => Some("pairs_are_aligned_as_by_the_reference"),
        COMBINE => Some("weighted_sums_agree_with_the_reference"),
        _ => None,
    }
}

/// The test that runs whole layers and fails for a kernel of the registry that none of them launches.
const LAYER_TEST: &str = "whole_layers_agree_with_the_reference_and_reach_every_kernel";

fn list() -> String {
    let mut reached: BTreeMap<&str, String> = BTreeMap::new();
    for request in Request::all() {
        for kernel in request.launched().unwrap_or_default() {
            reached.entry(kernel).or_insert_with(|| request.words());
        }
    }
    let tests = fs::read_to_string(path("tests/emulator/main.rs")).unwrap();
    let mut rows = String::from("| kernel | first planned for | test |\n|---|---|---|\n");
    for name in kernel_names() {
        let Some(request) = reached.get(name) else {
            panic!("no plan launches {name}: let the plan choose it, or leave it out");
        };
        let Some(test) = stage_test(name) else {
            panic!("{name} has no test of its own: name one in `stage_test`");
        };
        for test in [test, LAYER_TEST] {
            assert!(tests.contains(&format!("#[test]\nfn {test}()")), "there is no test {test}");
        }
        writeln!(rows, "| `{name}` | {request} | `{}` |", short(test)).unwrap();
    }
    rows
}

/// The part of a test's name that finds it.
fn short(test: &str) -> &str {
    test.find("_agree")
        .or(test.find("_choose"))
        .or(test.find("_as_by"))
        .map_or(test, |n| &test[..n])
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn every_kernel_is_planned_for_somebody_and_run_by_a_test_and_listed() {
    let list = list();
    println!("{list}");
    let readme = fs::read_to_string(path("kernels/README.md")).unwrap();
    let listed = readme.split_once(MARKS.0).and_then(|(_, rest)| rest.split_once(MARKS.1));
    let listed = listed.map_or("", |(listed, _)| listed);
    assert!(
        listed == list,
        "kernels/README.md, between {MARKS:?}, should list:\n\n{list}\nfirst line that differs: {:?}",
        list.lines().zip(listed.lines().chain(std::iter::repeat(""))).find(|(a, b)| a != b)
    );
}
