//! Transforms one behind the other.

use zeroize::Zeroizing;

use crate::proxy::body::{StreamError, Transform};

/// The output of each is the input of the next.
pub(crate) struct Chain(Vec<Box<dyn Transform>>);

impl Chain {
    /// `links` in their order.
    pub fn new(links: Vec<Box<dyn Transform>>) -> Self {
        Self(links)
    }

    /// Brings `input` through all, and what each gives out by `end` through those behind it.
    fn run(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        end: impl Fn(&mut dyn Transform, &mut Vec<u8>) -> Result<(), StreamError>,
    ) -> Result<(), StreamError> {
        let mut carried = Zeroizing::new(input.to_vec());
        for link in &mut self.0 {
            let mut next = Zeroizing::default();
            for piece in carried.chunks(link.step_bytes_max().max(1)) {
                link.push(piece, &mut next)?;
                while link.has_more() {
                    link.push(&[], &mut next)?;
                }
            }
            end(link.as_mut(), &mut next)?;
            carried = next;
        }
        out.extend_from_slice(&carried);
        Ok(())
    }
}

impl Transform for Chain {
    fn push(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.run(input, out, |_, _| Ok(()))
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.run(&[], out, |link, out| link.flush(out))
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        self.run(&[], out, |link, out| link.finish(out))
    }
}
