"""Words that carry no topic: English function words, and the vocabulary of programming languages.

Both lists are our own. They are short on purpose: a word missing here costs one dull key phrase, a word too many
hides a good one.
"""

from __future__ import annotations

from typing import Final

_ENGLISH: Final = """
a about above across actually after again against ago all almost alone along already also although always am among an
and another any anybody anyone anything are aren't around as ask asks at away back be became because become becomes
been before behind being below besides best better between beyond both but by came can can't cannot come comes could
couldn't did didn't do does doesn't doing don't done down during each either else elsewhere enough etc even ever every
everybody everyone everything except far few first for former found from further gave get gets getting give given
gives go goes going gone got had hadn't has hasn't have haven't having he hence her here hers herself him himself his
how however i i.e e.g ie eg if in indeed inside instead into is isn't it its it's itself just keep keeps kept know
known last later least less let lets like likely long look made make makes making many may maybe me mean means meant
might mine more most mostly much must my myself near need needs neither never next no nobody none nor not nothing now
nowhere of off often on once one ones only onto or other others otherwise ought our ours ourselves out outside over
own per perhaps please put quite rather really said same saw say says second see seem seems seen several shall shan't
she should shouldn't since so some somebody someone something sometimes somewhere soon still such take taken takes
tell than that that's the their theirs them themselves then there therefore these they thing things third this those
though three through thus to today together told too took toward towards two under unless until up upon us use used
uses using usually various very via was wasn't way we well went were weren't what whatever when whenever where whereas
wherever whether which while who whoever whole whom whose why will with within without won't would wouldn't yes yet
you your yours yourself yourselves
"""

_CODE: Final = """
abstract args arg array assert async attr attrs auto await base bool boolean break buf byte bytes callable case cast
catch char class cls cmp const constexpr continue ctx cur def default def del delete dict dir double dst elif else end
endif enum err errno except exec export extends extern false fi field final finally float fmt fn foo for foreach from
func function get getattr global goto hasattr idx if impl implements import include inherit init inline instance int
interface internal isinstance iter kwargs kw lambda len let lib list local long loop main match max min mod module msg
mut name namespace new nil nonlocal none noqa null num obj object op open optional override package param params pass
path print printf priv private property protected ptr pub public pyright raise range ref rest ret return returns self
set setattr short signed size sizeof sql src std static str string struct sub super switch sys template test tests
then this throw throws tmp todo true try tuple type typedef typename typing uint union unsigned use using val value
values var virtual void volatile where while with yield
"""

ENGLISH: Final = frozenset(_ENGLISH.split())
CODE: Final = frozenset(_CODE.split())
