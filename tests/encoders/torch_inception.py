"""Inception-v3 in PyTorch, in the variant of the Frechet inception distance and with random weights.

Written from the papers for comparison; modules have the published names.
"""

import torch
from torch import nn
from torch.nn import functional


class Unit(nn.Module):
    def __init__(self, i, o, size, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(i, o, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(o, eps=1e-3)
        nn.init.normal_(self.conv.weight, std=(2 / self.conv.weight[0].numel()) ** 0.5)
        for values, low, high in ((self.bn.weight, 0.8, 1.2), (self.bn.bias, -0.3, 0.3)):
            nn.init.uniform_(values, low, high)
        self.bn.running_mean.uniform_(-0.2, 0.2)
        self.bn.running_var.uniform_(0.5, 1.5)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


class Block(nn.Module):
    def __init__(self, pool, **units):
        super().__init__()
        self.pool = pool
        for name, unit in units.items():
            self.add_module(name, Unit(*unit))

    def pooled(self, x):
        if self.pool == "half":
            return functional.max_pool2d(x, 3, 2)
        if self.pool == "max":
            return self.branch_pool(functional.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


class A(Block):
    def __init__(self, i, pool):
        super().__init__(
            "average", branch1x1=(i, 64, 1), branch5x5_1=(i, 48, 1), branch5x5_2=(48, 64, 5, 1, 2),
            branch3x3dbl_1=(i, 64, 1), branch3x3dbl_2=(64, 96, 3, 1, 1), branch3x3dbl_3=(96, 96, 3, 1, 1),
            branch_pool=(i, pool, 1),
        )  # fmt: skip

    def forward(self, x):
        triple = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), triple, self.pooled(x)], 1)


class B(Block):
    def __init__(self, i):
        super().__init__(
            "half", branch3x3=(i, 384, 3, 2), branch3x3dbl_1=(i, 64, 1), branch3x3dbl_2=(64, 96, 3, 1, 1),
            branch3x3dbl_3=(96, 96, 3, 2),
        )  # fmt: skip

    def forward(self, x):
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, self.pooled(x)], 1)


class C(Block):
    def __init__(self, c, i=768):
        row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
        super().__init__(
            "average", branch1x1=(i, 192, 1), branch7x7_1=(i, c, 1), branch7x7_2=(c, c, *row),
            branch7x7_3=(c, 192, *column), branch7x7dbl_1=(i, c, 1), branch7x7dbl_2=(c, c, *column),
            branch7x7dbl_3=(c, c, *row), branch7x7dbl_4=(c, c, *column), branch7x7dbl_5=(c, 192, *row),
            branch_pool=(i, 192, 1),
        )  # fmt: skip

    def forward(self, x):
        y, z = x, x
        for number in range(1, 4):
            y = getattr(self, f"branch7x7_{number}")(y)
        for number in range(1, 6):
            z = getattr(self, f"branch7x7dbl_{number}")(z)
        return torch.cat([self.branch1x1(x), y, z, self.pooled(x)], 1)


class D(Block):
    def __init__(self, i):
        super().__init__(
            "half", branch3x3_1=(i, 192, 1), branch3x3_2=(192, 320, 3, 2), branch7x7x3_1=(i, 192, 1),
            branch7x7x3_2=(192, 192, (1, 7), 1, (0, 3)), branch7x7x3_3=(192, 192, (7, 1), 1, (3, 0)),
            branch7x7x3_4=(192, 192, 3, 2),
        )  # fmt: skip

    def forward(self, x):
        y = x
        for number in range(1, 5):
            y = getattr(self, f"branch7x7x3_{number}")(y)
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), y, self.pooled(x)], 1)


class E(Block):
    def __init__(self, i, pool):
        row, column = (384, 384, (1, 3), 1, (0, 1)), (384, 384, (3, 1), 1, (1, 0))
        super().__init__(
            pool, branch1x1=(i, 320, 1), branch3x3_1=(i, 384, 1), branch3x3_2a=row, branch3x3_2b=column,
            branch3x3dbl_1=(i, 448, 1), branch3x3dbl_2=(448, 384, 3, 1, 1), branch3x3dbl_3a=row,
            branch3x3dbl_3b=column, branch_pool=(i, 192, 1),
        )  # fmt: skip

    def forward(self, x):
        y, z = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        fork = [self.branch3x3_2a(y), self.branch3x3_2b(y), self.branch3x3dbl_3a(z), self.branch3x3dbl_3b(z)]
        return torch.cat([self.branch1x1(x), *fork, self.pooled(x)], 1)


class TorchInception(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Unit(3, 32, 3, 2), Unit(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Unit(32, 64, 3, 1, 1), Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a = A(192, 32), A(256, 64), A(288, 64), B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = C(128), C(160), C(160), C(192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = D(768), E(1280, "average"), E(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3((x - 128) / 128)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = functional.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))
