"""The data of the series are what their docstrings say. (That each call gives the same, the chapters' outputs tell.)"""

import torch

from course import data


def test_the_digits_are_uci_s_test_set_split_by_position():
    x, y, x_test, y_test = data.digits()
    assert (x.shape, x_test.shape, x.dtype, y.dtype) == ((1437, 64), (360, 64), torch.float32, torch.int64)
    assert (x.min(), x.max()) == (0, 1)
    # the counts of the classes as UCI's page of data set 80 gives them
    assert torch.bincount(torch.cat([y, y_test])).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_articles_follow_zipf_and_bring_rare_words_in_bursts():
    words = data.articles(0)
    counts = torch.bincount(words, minlength=200)
    assert counts.min() > 0 and 1.8 < counts[0] / counts[1] < 2.2 and 2.7 < counts[0] / counts[2] < 3.3
    rare = torch.stack([torch.bincount(article, minlength=200)[50:] for article in words.view(150, 384)])
    assert ((rare > 25).sum(dim=1) <= 3).all()  # of 384 words, 51 each for the topic, hardly any for the others
    counts, topics = rare.topk(3, dim=1)
    assert (counts.sum(dim=1) > 0.3 * 384).all() and len(topics.sort(dim=1).values.unique(dim=0)) > 140
