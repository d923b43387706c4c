"""How often `data.language` is right on held-out lines in Chinese, English, Japanese and Korean, long and short."""

from __future__ import annotations

import pytest

from catena.core.stage import Context
from tests.data.stores import documents, run, samples

LINES = {
    "zh": """今天早上下了一场大雨，街上几乎没有人。|这家饭馆的菜很便宜，味道也不错。
会议推迟到下周三下午两点举行。|他花了三年时间才写完这本书。|图书馆周末不开门，请在工作日来借书。
火车站离这里不远，走路十分钟就到。|这台机器需要每个月检查一次。|老师让学生们把作业带回家做。
政府计划在五年内修建一条新的铁路。|我的电脑昨天突然坏了，文件都丢了。|春天来了，公园里的花都开了。
如果你有问题，请随时给我打电话。|這個城市的夜景非常漂亮，吸引了很多遊客。|醫生建議他每天至少走一萬步。
数据显示，去年的出口增长了百分之八。|孩子们在海边捡了许多漂亮的贝壳。|请把文件发给我|明天见|多少钱|谢谢您的帮助
北京大学|生日快乐|正在下载|登录失败""",
    "en": """It rained heavily this morning and the streets were empty.
The meeting was moved to Wednesday afternoon next week.|It took him three years to finish writing this book.
The library is closed at weekends, so please come on a working day.
The station is not far from here, only ten minutes on foot.|This machine has to be inspected once every month.
The teacher told the students to take their homework home.
My computer broke down yesterday and all the files are gone.
Spring has come and the flowers in the park are in bloom.|If you have any questions, please call me at any time.
The doctor advised him to walk at least ten thousand steps a day.
According to the data, exports grew by eight percent.|The children collected many beautiful shells on the beach.
Most of the houses in this village are made of stone.|She opened the window because the room was too warm.
Nobody knows why the ship changed its course that night.|Please send me the file|See you tomorrow
How much does it cost|Thank you for your help|Happy birthday to you|The download has started|Your password is wrong
Where is the hotel""",
    "ja": """今朝は大雨が降って、通りにはほとんど人がいなかった。|この店の料理は安くて、味もなかなか良い。
会議は来週の水曜日の午後に延期されました。|彼はこの本を書き終えるのに三年かかった。
図書館は週末は閉まっているので、平日に来てください。|駅はここから遠くなく、歩いて十分で着きます。
この機械は毎月一回点検する必要がある。|先生は生徒たちに宿題を持ち帰らせた。
政府は五年以内に新しい鉄道を建設する計画だ。|昨日パソコンが突然壊れて、ファイルが全部消えた。
春が来て、公園の花が咲いています。|質問があれば、いつでも電話してください。
この町の夜景はとても美しく、多くの観光客を集めている。|医者は彼に毎日一万歩以上歩くよう勧めた。
子供たちは浜辺できれいな貝殻をたくさん拾った。|昨年の輸出は八パーセント増加した。|ファイルを送ってください|また明日
いくらですか|ありがとうございます|お誕生日おめでとう|ダウンロード中です|ログインに失敗しました|東京の天気""",
    "ko": """오늘 아침에 큰비가 내려서 거리에 사람이 거의 없었다.|이 식당의 음식은 싸고 맛도 괜찮다.
회의는 다음 주 수요일 오후로 연기되었습니다.|그는 이 책을 쓰는 데 삼 년이 걸렸다.
도서관은 주말에 문을 닫으니 평일에 오세요.|역은 여기에서 멀지 않아서 걸어서 십 분이면 도착합니다.
이 기계는 매달 한 번 점검해야 한다.|선생님은 학생들에게 숙제를 집에 가져가게 했다.
정부는 오 년 안에 새 철도를 건설할 계획이다.|어제 컴퓨터가 갑자기 고장 나서 파일이 모두 사라졌다.
봄이 와서 공원에 꽃이 피었습니다.|질문이 있으면 언제든지 전화해 주세요.
이 도시의 야경은 매우 아름다워 많은 관광객을 끌어들인다.|의사는 그에게 매일 만 보 이상 걸으라고 권했다.
아이들은 바닷가에서 예쁜 조개껍데기를 많이 주웠다.|작년 수출이 팔 퍼센트 증가했다.|파일을 보내 주세요|내일 봐요
얼마예요|감사합니다|생일 축하해요|다운로드 중입니다|로그인에 실패했습니다|서울의 날씨""",
}


@pytest.mark.parametrize("code", LINES)
def test_at_least_23_of_24_lines_are_in_the_right_language(context: Context, code: str) -> None:
    lines = [line for line in LINES[code].replace("\n", "|").split("|") if line]
    made = run(context, "data.language", {}, source=documents(context.store, *lines))
    found = [(row.text, row.metadata["language"]) for row in samples(context.store, made)]
    wrong = [row for row in found if row[1] != code]
    assert len(lines) == 24
    assert len(wrong) <= 1, wrong


def test_of_a_few_characters_the_script_decides(context: Context) -> None:
    texts = ["你好", "はい", "ネット", "네", "大学生", "東京へ", "한국 漢字"]
    made = run(context, "data.language", {}, source=documents(context.store, *texts))
    found = [row.metadata["language"] for row in samples(context.store, made)]
    assert found == ["zh", "ja", "ja", "ko", "zh", "ja", found[-1]]
    assert found[-1] in ("ko", "zh")
