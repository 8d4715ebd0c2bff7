//! Attribution: what each edge is worth for a metric. The method is a plugin
//! ([`AttributionMethod`]); here is what methods are made of.
//!
//! With a_u what writer u wrote, ã_u its ablated value and g_d the metric's gradient at reader d's
//! input, an edge's worth is ⟨a_u − ã_u, g_d⟩: to first order what the metric, a mean over all examples,
//! loses when the edge is ablated. All edges take one forward and one backward pass. Scores are defined
//! over all examples together; how they are split into batches changes nothing.

mod added;
mod agreement;
mod bootstrap;
mod by_example;
mod discover;
mod method;
mod observation;
mod products;
mod score_rows;
mod scoring;
mod settings;
mod site_values;
mod smoothing;
mod sums;

pub use agreement::Agreement;
// Beside the ablations themselves, what methods that run passes of their own need of them.
pub use crate::evaluation::ablation::{AblatedValues, Ablation, counterfactual_tokens, values_of};
pub use bootstrap::{Bootstrap, Certainty, Resamples};
pub use by_example::EdgeOrder;
pub use discover::{TakeExamples, discover, discover_by_example, discover_edges};
pub use method::{AttributionMethod, Discovered, MethodChoice, Needs, Run};
pub use observation::Observation;
pub use products::Difference;
pub use scoring::Scoring;
pub use settings::{Discovery, Positions};
pub use smoothing::{Smoother, Smoothing};
