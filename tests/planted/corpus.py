"""Healthy rows to plant faults in: questions about things, each with an answer in sentences."""

from typing import Any

Row = dict[str, Any]

# name, kind, a place or a time, a property, a use
THINGS = [
    ("苹果", "水果", "温带地区", "又甜又脆", "生吃或者榨汁"),
    ("竹子", "植物", "南方的山坡", "生长很快", "编篮子和盖房子"),
    ("骆驼", "动物", "干旱的沙漠", "很耐口渴", "驮运货物"),
    ("长城", "建筑", "中国北部", "绵延万里", "抵御外敌"),
    ("钢琴", "乐器", "十八世纪的意大利", "音域宽广", "独奏和伴奏"),
    ("茶叶", "饮品原料", "云南和福建", "清香提神", "冲泡待客"),
    ("指南针", "仪器", "宋代", "总是指向南北", "航海和探险"),
    ("蜜蜂", "昆虫", "花丛附近", "勤劳团结", "传播花粉"),
    ("火山", "地貌", "板块的边缘", "会喷出岩浆", "研究地球内部"),
    ("围棋", "游戏", "三千多年前的中国", "规则简单而变化无穷", "锻炼思维"),
    ("企鹅", "鸟类", "南极洲沿岸", "不会飞但善于游泳", "观察极地生态"),
    ("水车", "工具", "河流两岸", "靠水力转动", "灌溉农田"),
    ("丝绸", "织物", "长江下游", "轻薄柔软", "制作衣服"),
    ("望远镜", "光学仪器", "十七世纪的荷兰", "能看清远处", "观测星空"),
    ("大豆", "粮食作物", "东北平原", "富含蛋白质", "做豆腐和榨油"),
    ("候鸟", "迁徙动物", "湿地和海岸", "随季节往返", "反映气候变化"),
    ("瓷器", "工艺品", "景德镇", "洁白光滑", "盛放食物和装饰"),
    ("风车", "动力装置", "荷兰的低地", "靠风力旋转", "抽水和磨面"),
    ("珊瑚", "海洋生物", "温暖的浅海", "色彩鲜艳", "为鱼类提供住处"),
    ("算盘", "计算工具", "明代的商铺", "拨珠迅速", "记账和教学"),
    ("草原", "生态系统", "内蒙古", "一望无际", "放牧牛羊"),
    ("灯塔", "航标", "海港入口", "夜里发光", "引导船只"),
    ("毛笔", "书写工具", "秦代以前", "笔锋柔软", "书法和绘画"),
    ("水稻", "农作物", "江南水乡", "喜欢温暖湿润", "煮饭和酿酒"),
    ("冰川", "自然景观", "高山和两极", "缓慢移动", "记录古代气候"),
]

ASKED = (
    ("{name}是什么？", "{name}是一种{kind}，它{trait}。人们常常用它来{use}。"),
    (
        "请介绍{name}的来历。",
        "说到{name}，它与{place}有关。作为{kind}，它{trait}，很早就受人喜爱。",
    ),
    ("为什么人们看重{name}？", "因为{name}{trait}。此外，它可以用来{use}，所以很有价值。"),
    (
        "写一段关于{name}的短文。",
        "在{place}，人们很熟悉{name}。它是{kind}，{trait}。\n\n每当提起它，大家就会想到{use}的日子。",
    ),
    (
        "列出{name}的三个特点。",
        "1. {name}属于{kind}。\n2. 它{trait}。\n3. 人们用它来{use}，尤其是在{place}。",
    ),
)


def healthy_rows() -> list[Row]:
    """Return 50 rows; no two have the same question."""
    rows = []
    for question, answer in ASKED:
        for name, kind, place, trait, use in THINGS[:10]:
            words = {"name": name, "kind": kind, "place": place, "trait": trait, "use": use}
            rows.append(
                {
                    "instruction": question.format(**words),
                    "input": "",
                    "output": answer.format(**words),
                }
            )
    # In no order, so that neighbors ask different things; 37 and 50 have no common divisor.
    return [rows[index * 37 % len(rows)] for index in range(len(rows))]


FEELINGS = ("正面", "负面", "中性")


def classified_rows() -> list[Row]:
    """Return 120 rows of a classification with three labels, in no order."""
    return [
        {
            "instruction": f"判断这条评论的情感：{name}{ending}",
            "input": "",
            "output": FEELINGS[(index * 7 + number) % 3],
        }
        for number, ending in enumerate(
            ("真不错。", "让人失望。", "还可以吧。", "我会再买。", "有点旧。")
        )
        for index, (name, *_) in enumerate(THINGS[:24])
    ]


TOOLS = [
    {
        "name": "get_weather",
        "description": "查询天气",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    }
]


def tool_rows() -> list[Row]:
    """Return 20 conversations in which a tool is called and its result is told."""
    cities = "北京 上海 广州 深圳 杭州 成都 西安 武汉 南京 天津 苏州 长沙 青岛 大连 厦门 昆明 福州"
    cities += " 济南 郑州 合肥"
    return [
        {
            "tools": TOOLS,
            "messages": [
                {"role": "user", "content": f"{city}明天天气怎么样？"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [
                        {
                            "type": "function",
                            "function": {
                                "name": "get_weather",
                                "arguments": {"city": city, "days": 1},
                            },
                        }
                    ],
                },
                {"role": "tool", "content": f'{{"celsius": {degrees}}}'},
                {"role": "assistant", "content": f"{city}明天大约 {degrees} 度，天气晴朗。"},
            ],
        }
        for degrees, city in enumerate(cities.split(), start=8)
    ]
