"""The order of the rows of a resumed epoch, by accelerate's own dataloaders of two processes."""

import pytest
from accelerate import skip_first_batches
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, SeedableRandomSampler
from torch.utils.data import BatchSampler

from alignkit.trainers.exact_resume import set_epoch

ROWS = list(range(40))


def loader(processes: int) -> DataLoaderShard:
    sampler = BatchSampler(SeedableRandomSampler(ROWS, data_seed=3), batch_size=2, drop_last=False)
    if processes > 1:
        sampler = BatchSamplerShard(sampler, num_processes=processes, process_index=0)
    return DataLoaderShard(ROWS, batch_sampler=sampler, collate_fn=list)


def order(dataloader: DataLoaderShard, epoch: int) -> list[list[int]]:
    set_epoch(dataloader, epoch)
    dataloader.set_epoch(epoch)
    return list(dataloader)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_rest_of_an_epoch_keeps_its_order_in_a_resumed_run(processes: int) -> None:
    whole = order(loader(processes), 1)
    assert order(skip_first_batches(loader(processes), 3), 1) == whole[3:]
    assert order(loader(processes), 0) != whole
