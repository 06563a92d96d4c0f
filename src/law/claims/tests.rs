//! The claims under the default law give the computed values, and are judged by direction alone.

use super::*;
use crate::law::load_scaling;

fn all() -> Claims {
    let law = load_scaling("ludziejewski2025").unwrap();
    let proxy = |experts, n| law.closure(experts, n).ok().map(|c| c.n_total);
    let costing = Costing { cost: &proxy, name: "total parameters", is_priced: false };
    claims(&law, "ludziejewski2025", costing).unwrap()
}

#[test]
fn the_default_law_gives_the_computed_values() {
    // (claim, values, tolerance as computed values are rounded)
    let expected: [(&str, &[f64], f64); 13] = [
        ("Y1", &[1.59, 1.69, 2.06, 2.19, 1.3, 1.3], 0.02),
        ("Y3", &[0.630, 0.593], 0.001),
        ("Y4", &[8.44e9, 14.43e9, 0.519], 0.005),
        ("Y5", &[0.60, 0.62], 0.006),
        ("Y6", &[1.0 - 0.489, 1.0 - 0.474], 0.001),
        ("Y7", &[1.0 - 0.497, 1.0 - 0.452], 0.001),
        ("Y8", &[0.32, 0.32], 0.02),
        ("Y9", &[0.114, 0.115], 0.001),
        ("Y10", &[0.286, 0.287], 0.001),
        ("Y11", &[0.339, 0.185, 0.100, 0.055], 0.001),
        ("Y12", &[0.537, 0.284, 0.151, 0.225], 0.001),
        ("Y13", &[0.199, 0.193, 0.226, 0.195], 0.001),
        ("Y14", &[0.51, 0.53, 0.50, 0.55, 0.56, 0.65, 0.0158, 0.0236, 0.0225], 0.006),
    ];
    let claims = all().claims;
    for (id, values, tolerance) in expected {
        let claim = claims.iter().find(|c| c.id == id).unwrap();
        assert_eq!(claim.values.len(), values.len(), "{id}");
        for (got, expected) in claim.values.iter().zip(values) {
            let near = (got - expected).abs() <= tolerance * expected.abs().max(1.0);
            assert!(near, "{id}: {got} against {expected}");
        }
    }
}

#[test]
fn every_claim_is_answered_and_its_distance_from_the_fit_stated() {
    let claims = all();
    assert_eq!(claims.claims.len(), 18);
    assert_eq!(claims.inconsistencies.len(), 5);
    for claim in &claims.claims {
        assert!(!claim.computed.is_empty() && !claim.published.is_empty());
        assert_ne!(claim.verdict, Verdict::NotComputable, "{}: {}", claim.id, claim.computed);
        if claim.id.starts_with('Y') {
            assert!(claim.extrapolation > 10.0, "{}: {}", claim.id, claim.extrapolation);
            assert_eq!(claim.verdict, Verdict::SameDirection, "{}: {}", claim.id, claim.computed);
        }
    }
}

#[test]
fn a_cost_that_serves_nothing_leaves_claims_about_cost_open() {
    let law = load_scaling("ludziejewski2025").unwrap();
    let none = |_: usize, _: f64| None;
    let costing = Costing { cost: &none, name: "none", is_priced: true };
    let claims = claims(&law, "ludziejewski2025", costing).unwrap().claims;
    let verdict = |id| claims.iter().find(|c| c.id == id).unwrap().verdict;
    assert_eq!(verdict("Y6"), Verdict::NotComputable);
    assert_eq!(verdict("Y3"), Verdict::SameDirection);
    assert_eq!(verdict("Y1"), Verdict::NotComputable, "none serves cheapest");
}

#[test]
fn a_price_under_which_other_counts_serve_cheapest_contradicts_the_first_claim() {
    let law = load_scaling("ludziejewski2025").unwrap();
    let first = |favourite: usize| {
        let price = |experts: usize, n: f64| Some(if experts == favourite { n } else { 2e20 });
        let costing = Costing { cost: &price, name: "made up", is_priced: true };
        claims(&law, "l", costing).unwrap().claims[0].verdict
    };
    assert_eq!(first(8), Verdict::SameDirection);
    assert_eq!(first(32), Verdict::OppositeDirection);
}

#[test]
fn sizes_are_placed_against_the_published_range() {
    let range = Some([2.0, 3.0]);
    assert_eq!(Size::of(&[2.1, 3.0], range), Size::Within);
    assert_eq!(Size::of(&[1.0, 2.5], range), Size::Overlapping);
    assert_eq!(Size::of(&[1.0, 4.0], range), Size::Overlapping);
    assert_eq!(Size::of(&[1.0], range), Size::Below);
    assert_eq!(Size::of(&[4.0], range), Size::Above);
    assert_eq!(Size::of(&[], range), Size::NotComparable);
    assert_eq!(Size::of(&[1.0], None), Size::NotComparable);
    let claims = all().claims;
    let size = |id| claims.iter().find(|c| c.id == id).unwrap().size;
    assert_eq!(size("Y1"), Size::Below);
    assert_eq!(size("Y3"), Size::Above);
    assert_eq!(size("Y9"), Size::Below);
    assert_eq!(size("Y10"), Size::Above);
    assert_eq!(size("Y14"), Size::NotComparable);
    assert_eq!(size("Z4"), Size::NotComparable);
    for id in ["Z1", "Z2", "Z3"] {
        assert_eq!(size(id), Size::Within, "{id}");
    }
}
