"""The texts of a report, which is written in English, in Chinese."""

from __future__ import annotations

from typing import Callable

CHINESE = {
    " (control)": "（对照）",
    ": ": "：",
    "; ": "；",
    "accuracy": "准确率",
    "Accuracy, sparsity and time": "准确率、稀疏度与时间",
    "all": "全部",
    "All saved options": "保存的全部选项",
    "bytes of the weights' file": "权重文件字节数",
    "dashed": "虚线",
    "epochs": "轮数",
    "Exported networks": "导出的网络",
    "layer": "层",
    "learning rate": "学习率",
    "loss": "损失",
    "mAP": "mAP",
    "minus control, points": "与对照之差，百分点",
    "One picture on one thread of this machine; the networks took turns.": (
        "在本机单线程上每次一张图片；各网络轮流运行。"
    ),
    "Options other than the defaults; a default is in parentheses.": (
        "与默认值不同的选项；括号内为默认值。"
    ),
    "outline: before, from {path}": "轮廓线：之前，来自 {path}",
    "Over the epochs": "随训练轮数的变化",
    "processes": "进程数",
    "prunable": "可剪裁",
    "Pruning report": "剪裁报告",
    "runtime": "运行时",
    "size, bytes": "大小，字节",
    "solid": "实线",
    "sparsity": "稀疏度",
    "Sparsity by layer": "各层稀疏度",
    "sparsity, all": "稀疏度，全部",
    "sparsity, prunable": "稀疏度，可剪裁",
    "test": "测试",
    "the weights it started from are not at hand": "找不到训练开始时的权重",
    "the weights it started from were random": "训练从随机权重开始",
    "This page was made on {machine}.": "本页面生成于 {machine}。",
    "threshold": "阈值",
    "To repeat it": "重复训练的命令",
    "top-1": "top-1",
    "top-1, best": "top-1，最佳",
    "top-1 of the average": "平均权重的 top-1",
    "top-5": "top-5",
    "training": "训练",
    "training, hours": "训练，小时",
    "Versions and hardware": "版本与硬件",
    "weights": "权重数",
    "Weights before and after": "剪裁前后的权重",
    "What was trained": "训练内容",
    "11-point": "11 点",
    "mAP, 11-point": "mAP，11 点",
    "mAP, 11-point, best": "mAP，11 点，最佳",
    "ms a picture": "每张图片毫秒数",
    "{kept} of {all} weights are kept, {sparsity} are 0; the outermost 2% at the edges": (
        "{all} 个权重中保留 {kept} 个，{sparsity} 为 0；最外侧的 2% 并入两端"
    ),
}


def translator(language: str) -> Callable[[str], str]:
    """What puts an English text of the report into `language`, en or zh."""
    return CHINESE.__getitem__ if language == "zh" else str
