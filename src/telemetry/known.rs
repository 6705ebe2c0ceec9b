//! A gauge whose figure may be unknown: it is then absent from the scrape, never an old one and never zero.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::core::{Atomic, Collector, Desc, GenericGauge};
use prometheus::proto::MetricFamily;

/// See the module. Clones share the figure.
#[derive(Clone, Debug)]
pub struct Known<G> {
    gauge: G,
    known: Arc<AtomicBool>,
}

impl<G> Known<G> {
    /// Not known yet.
    pub(super) fn new(gauge: G) -> Self {
        Self { gauge, known: Arc::default() }
    }

    /// Shows the figure as it stands, or hides it.
    pub fn show_if(&self, known: bool) {
        self.known.store(known, Ordering::Release);
    }
}

impl<P: Atomic> Known<GenericGauge<P>> {
    /// Shows this figure; `None` for one that isn't known.
    pub fn show(&self, figure: Option<P::T>) {
        if let Some(figure) = figure {
            self.gauge.set(figure);
        }
        self.show_if(figure.is_some());
    }

    /// The figure, if it is known.
    pub fn get(&self) -> Option<P::T> {
        self.known.load(Ordering::Acquire).then(|| self.gauge.get())
    }

    /// Adds to the figure, whether it is shown or not.
    pub fn add(&self, more: P::T) {
        self.gauge.add(more);
    }
}

impl<P: Atomic + 'static> Collector for Known<GenericGauge<P>> {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if self.known.load(Ordering::Acquire) { self.gauge.collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{IntGauge, Registry, TextEncoder};

    #[test]
    fn a_figure_is_in_the_scrape_only_while_it_is_known() {
        let gauge = Known::new(IntGauge::new("figure", "A figure.").unwrap());
        let registry = Registry::new();
        registry.register(Box::new(gauge.clone())).unwrap();
        let scrape = || TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert_eq!(scrape(), "");
        gauge.show(Some(0));
        assert!(scrape().ends_with("\nfigure 0\n"), "zero is a figure: {}", scrape());
        gauge.show(None);
        gauge.add(5);
        assert_eq!(scrape(), "");
        gauge.show_if(true);
        assert!(scrape().ends_with("\nfigure 5\n"), "it was counted meanwhile: {}", scrape());
    }
}
