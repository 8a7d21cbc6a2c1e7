from torch import nn

from hf_llm_recipes.drawing import draw


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 8)
        self.act = nn.GELU()


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.layers = nn.ModuleList([Block(4), Block(4), Block(2)])
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def test_equal_neighbours_are_drawn_once_and_tied_weights_counted_once():
    # by hand: embed 10*4 = 40; blocks 4*8+8 = 40, 40, 2*8+8 = 24; the head is the embedding's
    assert draw(Toy()).splitlines() == [
        "Toy: 144 parameters",
        "├─ embed: Embedding 10×4  40 (27.8 %)",
        "├─ layers: ModuleList  104 (72.2 %)",
        "│  ├─ 0–1: 2 × Block  80 (55.6 %)",
        "│  │  ├─ up: Linear 8×4  40 (27.8 %)",
        "│  │  └─ act: GELU",
        "│  └─ 2: Block  24 (16.7 %)",
        "│     ├─ up: Linear 8×2  24 (16.7 %)",
        "│     └─ act: GELU",
        "└─ head: Linear 10×4  40 (27.8 %)",
        "(40 of the parts' parameters are tied: counted once in the total)",
    ]
