//! Measured times along one or two axes, and what lies between them.
//!
//! Between two points time is the straight line through them: a fixed cost plus what each row, byte
//! or token adds, which is what kernels do. Beyond the last point the last slope goes on.

use super::narrow::single;
use super::series::Point;

/// Times along one axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Line {
    /// Places, rising.
    pub(super) x: Vec<f32>,
    /// Seconds at each place.
    pub(super) t: Vec<f32>,
}

/// A place between (or on) measured points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Place {
    /// Index of the point at or before it.
    pub(super) at: usize,
    /// Share of the way to the next point; beyond 1 behind the last one, below 0 before the first.
    pub(super) share: f64,
}

impl Place {
    /// Of `x` among rising places.
    pub(super) fn of(places: &[f32], x: f64) -> Self {
        let last = places.len().saturating_sub(2);
        let at = places.partition_point(|p| f64::from(*p) <= x).saturating_sub(1).min(last);
        match (places.get(at), places.get(at + 1)) {
            (Some(&from), Some(&to)) => {
                let (from, to) = (f64::from(from), f64::from(to));
                Self { at, share: (x - from) / (to - from) }
            }
            // One point says nothing about any other place.
            (Some(&only), None) if (x / f64::from(only) - 1.0).abs() > 1e-9 => {
                Self { at, share: f64::INFINITY.copysign(x - f64::from(only)) }
            }
            _ => Self { at, share: 0.0 },
        }
    }

    /// Whether it is a measured point.
    pub(super) fn is_exact(self) -> bool {
        self.share.abs() < 1e-9 || (self.share - 1.0).abs() < 1e-9
    }

    /// Whether it lies between the first point and the last.
    pub(super) fn is_inside(self) -> bool {
        (-1e-9..=1.0 + 1e-9).contains(&self.share)
    }
}

impl Line {
    /// From points in any order; of several times at one place the shortest is kept.
    pub(super) fn from_points(mut points: Vec<(f32, f32)>) -> Self {
        points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        points.dedup_by(|next, kept| next.0.to_bits() == kept.0.to_bits());
        let (x, t) = points.into_iter().unzip();
        Self { x, t }
    }

    /// Time at a place. Before the first point it falls towards no less than half of the first
    /// time; behind the last it never falls.
    pub(super) fn at(&self, place: Place) -> f64 {
        let Some(&from) = self.t.get(place.at) else { return 0.0 };
        let Some(&to) = self.t.get(place.at + 1) else { return f64::from(from) };
        let (from, to) = (f64::from(from), f64::from(to));
        if place.share > 1.0 {
            to + (to - from).max(0.0) * (place.share - 1.0)
        } else if place.share < 0.0 {
            (from + (to - from).max(0.0) * place.share).max(0.5 * from)
        } else {
            from + (to - from) * place.share
        }
    }

    /// Time at `x`.
    pub(super) fn time(&self, x: f64) -> f64 {
        self.at(Place::of(&self.x, x))
    }
}

/// Times over sequences and context.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Surface {
    /// Contexts, rising.
    pub(super) context: Vec<f32>,
    /// Times over sequences at each context.
    rows: Vec<Line>,
}

/// What a surface says about a point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    pub(super) seconds: f64,
    /// Whether the point was measured.
    pub(super) exact: bool,
}

impl Surface {
    /// From points (sequences, context); of several times at one point the shortest is kept.
    pub(super) fn from_points(mut points: Vec<(Point, f32)>) -> Self {
        points.sort_unstable_by_key(|((x, y), _)| (*y, *x));
        let mut surface = Self::default();
        for row in points.chunk_by(|a, b| a.0.1 == b.0.1) {
            surface.context.push(row[0].0.1 as f32);
            let line = row.iter().map(|((x, _), t)| (*x as f32, *t)).collect();
            surface.rows.push(Line::from_points(line));
        }
        surface
    }

    /// The shortest measured time.
    pub(super) fn least(&self) -> f64 {
        let times = self.rows.iter().flat_map(|row| row.t.iter().copied());
        f64::from(times.fold(f32::INFINITY, f32::min))
    }

    /// Time at a point. Along the context the share of quadratic growth is what the measured points
    /// say: `curved` interpolates ln(time) over ln(context) (prompts), else time over context.
    pub(super) fn time(&self, sequences: f64, context: f64, curved: bool) -> Found {
        let place = Place::of(&self.context, context);
        let row = |at: usize| {
            self.rows.get(at).map(|line| {
                let place = Place::of(&line.x, sequences);
                (line.at(place), place.is_exact())
            })
        };
        let (Some((from, from_exact)), to) = (row(place.at), row(place.at + 1)) else {
            return Found { seconds: 0.0, exact: false };
        };
        let Some((to, to_exact)) = to else {
            return Found { seconds: from, exact: from_exact && place.is_exact() };
        };
        if place.is_exact() {
            let first = place.share < 0.5;
            let seconds = if first { from } else { to };
            return Found { seconds, exact: if first { from_exact } else { to_exact } };
        }
        let seconds = if curved {
            let (a, b) = (self.context[place.at], self.context[place.at + 1]);
            let share = (context / f64::from(a)).ln() / (f64::from(b) / f64::from(a)).ln();
            let slope = (to / from).ln();
            if share > 1.0 {
                to * (slope.max(0.0) * (share - 1.0)).exp()
            } else {
                from * (slope * share.max(0.0)).exp()
            }
        } else {
            let line = Line { x: vec![0.0; 2], t: vec![single(from), single(to)] };
            line.at(Place { at: 0, share: place.share })
        };
        Found { seconds, exact: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_on_with_its_last_slope_and_keeps_the_shorter_of_two_times() {
        let line = Line::from_points(vec![(2.0, 3.0), (1.0, 2.0), (2.0, 5.0), (4.0, 5.0)]);
        assert_eq!((line.x.len(), line.t[1].to_bits()), (3, 3.0f32.to_bits()));
        for (x, t) in [(1.0, 2.0), (1.5, 2.5), (3.0, 4.0), (8.0, 9.0), (0.5, 1.5), (-9.0, 1.0)] {
            assert!((line.time(x) - t).abs() < 1e-6, "{x}: {}", line.time(x));
        }
        assert!(Place::of(&line.x, 4.0).is_exact() && !Place::of(&line.x, 3.0).is_exact());
        assert!(!Place::of(&line.x, 4.5).is_inside());
    }

    #[test]
    fn a_surface_gives_back_its_points_and_affine_times_between_them() {
        let time = |x: u32, y: u32| 10.0 + (x * y) as f32;
        let points = [(1, 8), (2, 8), (4, 8), (1, 32), (2, 32), (4, 32)];
        let surface = Surface::from_points(points.map(|(x, y)| ((x, y), time(x, y))).to_vec());
        let found = surface.time(2.0, 32.0, false);
        assert!(found.exact && (found.seconds - 74.0).abs() < 1e-6);
        let between = surface.time(3.0, 16.0, false);
        assert!(!between.exact && (between.seconds - 58.0).abs() < 1e-4, "{between:?}");
    }
}
