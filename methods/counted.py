"""Methods that state the work of an update: its NFE follow from it."""

from bench.api.method import Experience, Method


class CountedMethod(Method[Experience]):
    """Base of the methods that implement `work`."""

    @classmethod
    def predict(cls, spec, sampler) -> int:
        """NFE of one update, from `work`."""
        work = cls.work(spec, sampler)
        assert work is not None  # every subclass implements `work`
        return work.passes.nfe
